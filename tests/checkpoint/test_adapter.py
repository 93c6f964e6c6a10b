"""What an adapter's folder and config may say, and what is refused by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from raymerge.checkpoint.adapter import holds_adapter, read_adapter
from raymerge.checkpoint.lora import Lora, parse_lora
from raymerge.errors import PlanError, RaymergeError, SourceError
from raymerge.storage.posix import PosixFolder
from tests.adapters import CONFIG, factors, write_adapter

DRAWN = factors({"m": (6, 5)})


def lora(**config: Any) -> Lora:
    return parse_lora({**CONFIG, **config}, source="x")


@pytest.mark.parametrize(
    ("files", "adapter"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], True),
        (["adapter_config.json", "adapter_model.bin", "training_args.bin"], True),
        (["adapter_model.safetensors"], True),
        (["adapter_config.json"], True),
        (["adapter_config.json", "adapter_model.safetensors", "model.safetensors"], False),
        (["adapter_config.json", "pytorch_model.bin"], False),
        (["config.json", "model.safetensors"], False),
        ([], False),
    ],
)
def test_a_folder_is_an_adapter_unless_it_holds_a_model(files: list[str], adapter: bool) -> None:  # noqa: FBT001
    assert holds_adapter(dict.fromkeys(files, 1)) is adapter


def test_config_and_weights_are_pinned_and_nothing_else_is_taken(tmp_path: Path) -> None:
    write_adapter(tmp_path / "y", DRAWN, lora_alpha=3)
    (tmp_path / "y" / "tokenizer.json").write_text("{}")
    found = read_adapter(PosixFolder(tmp_path / "y"), label="x adapter")
    assert set(found.pins) == {"adapter_config.json", "adapter_model.safetensors"}
    assert found.side_files == ()
    assert found.lora is not None
    assert (found.lora.rank, found.lora.alpha, found.lora.base) == (4, 3, "org/base")


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"r": 16, "lora_alpha": 32}, 2.0),
        ({"r": 3, "lora_alpha": 1}, 1 / 3),
        ({"r": 8, "lora_alpha": 2.5}, 2.5 / 8),
        ({"r": 3, "lora_alpha": 1, "use_rslora": True}, 1 / math.sqrt(3)),
    ],
)
def test_scaling_is_alpha_over_the_rank_or_its_root(config: dict[str, Any], scaling: float) -> None:
    assert lora(**config).scaling_of("any") == scaling


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("_proj", False),
        (".*_proj", True),
        (r"layers\.[0-3]\.self_attn.q_proj", True),
        (r"^model\.layers\.1\.self_attn\.q_proj", True),
        (r"^layers\.1\.self_attn\.q_proj", False),
        ("q_proj.weight", False),
        ("self_attn", False),
    ],
)
def test_a_pattern_matches_a_name_or_its_end_after_a_dot(pattern: str, matched: bool) -> None:  # noqa: FBT001
    found = lora(rank_pattern={pattern: 2}, alpha_pattern={pattern: 6})
    module = "model.layers.1.self_attn.q_proj"
    assert found.rank_of(module) == (2 if matched else 4)
    assert found.scaling_of(module) == (3.0 if matched else 2.0)


def test_the_first_pattern_that_matches_counts() -> None:
    found = lora(rank_pattern={"q_proj": 2, ".*": 3}, alpha_pattern={"k_proj": 1})
    assert (found.rank_of("a.q_proj"), found.rank_of("a.k_proj")) == (2, 3)
    assert found.scaling_of("a.k_proj") == 1 / 3


def test_what_concerns_training_only_is_passed_over() -> None:
    lora(
        lora_dropout=0.1,
        layers_to_transform=[1],
        layers_pattern="layers",
        exclude_modules=["k_proj"],
        modules_to_save=["lm_head"],
        megatron_config=None,
        megatron_core="megatron.core",
        eva_config={"rho": 2.0},
        loftq_config={},
        runtime_config={"ephemeral_gpu_offload": False},
        layer_replication=None,
        lora_bias=False,
        unheard_of=None,
        inference_mode=True,
    )


UNKNOWN = "sets {}, which raymerge does not implement"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        kind: ({"peft_type": kind}, f"is of peft_type '{kind}'; only LORA adapters can be added")
        for kind in ("LOHA", "LOKR", "IA3", "ADALORA", "VERA", "OFT", "PREFIX_TUNING")
    },
    "no type": ({"peft_type": None}, "is of peft_type None; only LORA"),
    **{
        key: ({key: value}, UNKNOWN.format(key))
        for key, value in {
            "trainable_token_indices": [1, 2],
            "layer_replication": [[0, 4], [2, 5]],
            "lora_bias": True,
            "target_parameters": ["mlp.experts.gate_up_proj"],
            "alora_invocation_tokens": [1, 2],
            "use_qalora": True,
            "use_bdlora": {"nblocks": 2},
            "arrow_config": {"top_k": 3},
            "kasa_config": {"beta": 1e-4},
            "megatron_config": {"tensor_model_parallel_size": 2},
            "something_of_tomorrow": True,
        }.items()
    },
    **{
        f"start {start}": ({"init_lora_weights": start}, f"says init_lora_weights: '{start}'")
        for start in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")
    },
    "bias": ({"bias": "some"}, "says bias: 'some'; known are none, all and lora_only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(PlanError) as caught:
        lora(**config)
    assert str(caught.value).startswith(f"x: adapter_config.json {message}")
    assert "with PEFT (merge_and_unload) and give the result" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 0}, "its r is 0; expected a rank, a whole number above 0"),
        ({"r": "8"}, "its r is '8'; expected a rank"),
        ({"r": None}, "its r is None; expected a rank"),
        ({"lora_alpha": None}, "its lora_alpha is None; expected a number"),
        ({"lora_alpha": True}, "its lora_alpha is True; expected a number"),
        ({"lora_alpha": math.inf}, "its lora_alpha is inf; expected a number"),
        ({"rank_pattern": ["q"]}, "its rank_pattern is ['q']; expected an object"),
        ({"rank_pattern": {"q": 1.5}}, "its q is 1.5; expected a rank"),
        ({"alpha_pattern": {"q(": 1}}, "in its alpha_pattern 'q(' is no regular expression"),
    ],
)
def test_a_value_that_cannot_be_is_an_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as caught:
        lora(**config)
    assert str(caught.value).startswith(f"x: adapter_config.json: {message}")


def refusal(folder: Path) -> RaymergeError:
    with pytest.raises(RaymergeError) as caught:
        read_adapter(PosixFolder(folder), label="x")
    return caught.value


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "y", DRAWN)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = str(refusal(folder))
    assert message.startswith("x: adapter_model.bin is pickled, which can run code when read")
    # The command does what it says.
    torch.save(DRAWN, folder / "adapter_model.bin")
    command = message.split('python -c "')[1].removesuffix('"')
    exec(compile(command, "command", "exec"), {})
    assert read_adapter(PosixFolder(folder), label="x").tensors.keys() == DRAWN.keys()


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "y", DRAWN)
    (folder / "adapter_model.safetensors").unlink()
    assert "has adapter_config.json and no adapter_model.safetensors" in str(refusal(folder))
    (folder / "adapter_config.json").unlink()
    assert "is no LoRA adapter: there is no adapter_config.json" in str(refusal(folder))


def test_factors_of_other_types_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "y", {name: one.double() for name, one in DRAWN.items()})
    assert "is float64; expected float32, float16 or bfloat16" in str(refusal(folder))
    (folder / "adapter_config.json").write_text(json.dumps([1]))
    assert "it holds a JSON list, not an object" in str(refusal(folder))
