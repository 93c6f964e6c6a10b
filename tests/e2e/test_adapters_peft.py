"""Adapters made by PEFT, merged by PEFT and by us: the same to 1e-6, in the base's dtype to an ulp.

PEFT is a peer that only these tests import: it has what LoRA files mean from the people who write
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import Place, read_tensors
from tests.peer.mergekit import Mergekit
from tests.peer.models import ARCHITECTURES

pytestmark = [
    pytest.mark.peer,
    # PEFT's own, about embeddings and matrices that it corrects or copies.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
peft = pytest.importorskip("peft", reason="needs `pip install raymerge[peer]`")
TOLERANCE = 1e-6
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


def llama(*, tied: bool = False, biases: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(  # type: ignore[no-any-return]
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
            attention_bias=biases,
        )
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    return GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def seeing(architecture: str) -> nn.Module:
    from transformers import AutoModelForImageTextToText

    config = ARCHITECTURES[architecture]()
    return AutoModelForImageTextToText.from_config(config)  # type: ignore[no-any-return]


def make(
    place: Place,
    model: nn.Module,
    config: Mapping[str, Any],
    *,
    adapter_dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Write `base` and the adapter `lora`; returns what PEFT merges them into."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    model.save_pretrained(place / "base")  # type: ignore[operator]
    tuned = peft.get_peft_model(model, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                # As training would: B is no longer zero, a magnitude no longer the length.
                noise = torch.randn(parameter.shape) * 0.05
                parameter.copy_((parameter + noise).to(adapter_dtype))
                assert name
    tuned.save_pretrained(place / "lora")
    fresh = type(model).from_pretrained(place / "base")  # type: ignore[attr-defined]
    merged = peft.PeftModel.from_pretrained(fresh, place / "lora").merge_and_unload()
    merged.save_pretrained(place / "theirs")
    return read_tensors(place / "theirs")


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "attention": (llama, {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    "every linear layer": (llama, {"r": 5, "lora_alpha": 3, "target_modules": "all-linear"}),
    "rank-stabilised": (
        llama, {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": MLP},
    ),
    "rank and alpha patterns": (
        llama,
        {
            "r": 4, "lora_alpha": 8, "target_modules": ATTENTION + MLP,
            "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\.mlp\..*": 7, "o_proj": 3},
            "alpha_pattern": {r"layers.0.self_attn.[kv]_proj": 5, "down_proj": 1},
            "use_rslora": True,
        },
    ),
    "biases of all": (
        lambda: llama(biases=True),
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "all"},
    ),
    "biases of the adapted": (
        lambda: llama(biases=True),
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "lora_only"},
    ),
    "magnitudes": (
        llama, {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", *MLP]},
    ),
    "modules saved whole": (
        llama,
        {
            "r": 4, "lora_alpha": 8, "target_modules": ["v_proj"],
            "modules_to_save": ["lm_head", "embed_tokens", "norm"],
        },
    ),
    "an embedding": (
        llama, {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]},
    ),
    "embedding and head": (
        llama, {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head"]},
    ),
    "an embedding with magnitudes": (
        llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    ),
    "a tied embedding": (
        lambda: llama(tied=True), {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"]},
    ),
    "GPT-2": (
        gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"],
               "fan_in_fan_out": True},
    ),
    "GPT-2, square matrices": (
        gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["attn.c_proj"], "bias": "all"},
    ),
    "GPT-2, embedding and all": (
        gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "wte"]},
    ),
    "GPT-2, magnitudes": (
        gpt2, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"], "use_dora": True,
               "fan_in_fan_out": True},
    ),
    "a model that sees, its language model": (
        lambda: seeing("qwen-vl"),
        {"r": 4, "lora_alpha": 8, "target_modules": r".*language_model.*q_proj"},
    ),
    "a model that sees, both of its parts": (
        lambda: seeing("qwen-vl"),
        {"r": 4, "lora_alpha": 8, "target_modules": r".*\.(q_proj|qkv|lm_head)",
         "modules_to_save": ["embed_tokens"]},
    ),
    "Llava, both of its parts and the head": (
        lambda: seeing("llava"),
        {"r": 4, "lora_alpha": 8, "target_modules": r".*(\.q_proj|lm_head|linear_1)"},
    ),
    "started by an orthogonal draw": (
        llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_peft_merges_to_the_same(place: Place, case: str) -> None:
    torch.manual_seed(0)
    build, config = CASES[case]
    theirs = make(place, build(), config)
    ours = place.merged(place.recipe("passthrough", [f"base+{place / 'lora'}"]))
    base = read_tensors(place / "base")

    assert ours.keys() == theirs.keys() == base.keys()
    changed = 0
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.float32
        apart = (tensor.double() - theirs[name].double()).abs()
        largest = torch.maximum(base[name].abs(), theirs[name].abs()).clamp(min=1)
        assert (apart <= TOLERANCE * largest).all(), (name, apart.max())
        changed += not torch.equal(tensor, base[name])
    assert changed > 0


def test_a_head_saved_with_a_tied_model_becomes_its_head(place: Place) -> None:
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    theirs = make(place, llama(tied=True), config)
    ours = place.merged(place.recipe("passthrough", [f"base+{place / 'lora'}"]), "ours")

    assert ours.keys() == theirs.keys() == read_tensors(place / "base").keys() | {"lm_head.weight"}
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= TOLERANCE, name
    assert json.loads((place / "ours" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_they_part_by_an_ulp(place: Place, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "modules_to_save": ["lm_head"]}
    theirs = make(place, llama().to(dtype), config, adapter_dtype=dtype)
    ours = place.merged(place.recipe("passthrough", [f"base+{place / 'lora'}"]))

    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == dtype
        # Halves that differ by one ulp have bit patterns that differ by one.
        words = [one.view(torch.int16).int() for one in (tensor, theirs[name])]
        same_sign = (words[0] < 0) == (words[1] < 0)
        close = ((words[0] - words[1]).abs() <= 1) | (~same_sign & (tensor == theirs[name]))
        # PEFT's sum is rounded before it is added: near zero that is more than an ulp of the rest.
        tiny = (tensor - theirs[name]).abs() <= 2 * torch.finfo(dtype).eps * 0.1
        assert (close | tiny).all(), name


def test_what_peft_writes_about_training_is_passed_over(place: Place) -> None:
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1,
              "layers_to_transform": [1], "exclude_modules": ["k_proj"],
              "task_type": "CAUSAL_LM"}  # fmt: skip
    make(place, llama(), config)
    plan = place.run("plan", place.recipe("passthrough", [f"base+{place / 'lora'}"]), "--json").json
    written = json.loads((place / "lora" / "adapter_config.json").read_text())
    assert written["layers_to_transform"] == [1]
    assert plan["sources"][1]["adapter"] == {
        "source": "base+lora", "ranks": [4], "scalings": [2.0], "adapted": 1, "replaced": 0,
    }  # fmt: skip
    assert Path(plan["sources"][1]["location"]).name == "lora"


@pytest.mark.peer
def test_mergekit_gives_the_same_where_it_merges_the_adapter_first(
    place: Place, mergekit: Mergekit, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make(place, llama(), {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION})
    model = f"base+{place / 'lora'}"
    recipe = place.recipe("task_arithmetic", {model: {"weight": 0.7}}, base="base", dtype="float32")
    ours = place.merged(recipe)
    options = ["--lora-merge-cache", tmp_path / "cache", "--no-copy-tokenizer", "--quiet"]
    assert not mergekit.run("mergekit-yaml", recipe, place / "mergekits", *options)
    theirs = read_tensors(place / "mergekits")

    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= TOLERANCE, name
