"""What lies beside the shards: config.json and what is copied from the donor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.catalog import read_catalog
from raymerge.checkpoint.consistency import config_problems
from raymerge.checkpoint.dtypes import DType
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.runtime import side_files as module
from raymerge.runtime.side_files import fitted_config, left_out, side_files, why_left_out
from raymerge.storage.posix import PosixFolder
from tests.checkpoints import llama_config, tiny_llama_tensors, write_checkpoint
from tests.plans import EMBEDDING, HEAD, MODEL, NORM, TIED, Tensors, catalog, plan, recipe

SAYS_TIED, SAYS_UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def of_dtype(dtype: DType, *names: str) -> Tensors:
    return {
        name: (dtype if name in names else kind, shape) for name, (kind, shape) in MODEL.items()
    }


def fitted(config: Mapping[str, Any], made: Plan) -> dict[str, Any]:
    document = json.loads(fitted_config(made, json.dumps(config).encode()))
    assert isinstance(document, dict)
    return document


COPIED = {
    "LICENSE": "terms",
    "NOTICE.txt": "thanks",
    "USE_POLICY.md": "be kind",
    "added_tokens.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "generation_config.json": '{"eos_token_id": [1, 2]}',
    "merges.txt": "a b",
    "modeling_tiny.py": "raise SystemExit",
    "preprocessor_config.json": "{ }",
    "special_tokens_map.json": "{}",
    "tokenizer.json": '{"é": 1}\r\n',
    "tokenizer.model": "\x00\x01",
    "vocab.json": "{}",
}
LEFT_OUT = {
    ".gitattributes": "hidden",
    "README.md": "describes the donor",
    "adapter_config.json": "of an adapter",
    "events.out.tfevents.1": "left by training",
    "hf_quant_config.json": "of a quantised model",
    "mergekit_config.yml": "describes the donor",
    "quantize_config.json": "of a quantised model",
    "raymerge.json": "describes the donor",
    "scheduler.json": "left by training",
    "zero_to_fp32.py": "left by training",
    "train.log": "left by training",
    "trainer_state.json": "left by training",
    "all_results.json": "left by training",
}


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    tensors = tiny_llama_tensors(0)
    folder = write_checkpoint(tmp_path / "donor", tensors, config=llama_config(tensors))
    for name, text in {**COPIED, **LEFT_OUT}.items():
        (folder / name).write_bytes(text.encode())
    for name in ("optimizer.pt", "pytorch_model.bin", "rng_state_0.pth", "training_args.bin"):
        (folder / name).write_bytes(b"not a side file at all")
    return folder


def plan_of(folder: Path, **top: Any) -> Plan:
    merge = recipe("passthrough", "donor", models=[{"path": str(folder), "label": "donor"}], **top)
    return plan(merge, [read_catalog(PosixFolder(folder), label="donor")])


def test_the_donors_files_are_copied_byte_for_byte(donor: Path) -> None:
    files = side_files(plan_of(donor), PosixFolder(donor))

    assert {*files} == {*COPIED, "config.json"}
    for name in COPIED:
        assert files[name] == (donor / name).read_bytes()


def test_what_is_left_out_is_listed_with_its_reason(donor: Path) -> None:
    assert left_out(plan_of(donor), PosixFolder(donor)) == LEFT_OUT


def test_every_side_file_is_copied_or_listed(donor: Path) -> None:
    made, folder = plan_of(donor), PosixFolder(donor)

    copied, listed = {*side_files(made, folder)}, {*left_out(made, folder)}
    assert copied | listed == {*made.donor.side_files}
    assert not copied & listed


def test_a_file_too_large_to_be_any_models_is_left_out(
    donor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COPIED_BYTES", 9)
    made = plan_of(donor)

    assert "generation_config.json" not in side_files(made, PosixFolder(donor))
    assert left_out(made, PosixFolder(donor))["generation_config.json"] == "24 B, over 9 B"


def test_a_file_that_has_gone_since_planning_is_named(donor: Path) -> None:
    made = plan_of(donor)
    (donor / "tokenizer.json").unlink()

    with pytest.raises(SourceError, match=r"donor: tokenizer.json was there when") as caught:
        side_files(made, PosixFolder(donor))
    assert caught.value.file == "tokenizer.json"


def test_a_donor_without_a_config_gives_none(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bare", {"w": torch.ones(4)})
    made = plan_of(folder)

    assert side_files(made, PosixFolder(folder)) == {}


def test_a_config_that_stays_true_stays_byte_for_byte(donor: Path) -> None:
    odd = (donor / "config.json").read_text().replace("\n", "\r\n\t")
    (donor / "config.json").write_bytes(odd.encode())

    files = side_files(plan_of(donor), PosixFolder(donor))
    assert files["config.json"] == odd.encode()


def test_a_config_that_is_changed_keeps_its_order_and_every_other_value(donor: Path) -> None:
    before = json.loads((donor / "config.json").read_bytes())
    files = side_files(plan_of(donor, dtype="float32"), PosixFolder(donor))

    after = json.loads(files["config.json"])
    assert list(after) == list(before)
    assert after == {**before, "dtype": "float32"}
    assert files["config.json"].startswith(b'{\n  "architectures": [\n')


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}),
        ({"dtype": "torch.bfloat16"}, {"dtype": "float32"}),
        ({"dtype": None}, {"dtype": "float32"}),
        (
            {"dtype": "float16", "torch_dtype": "float16"},
            {"dtype": "float32", "torch_dtype": "float32"},
        ),
        ({"model_type": "llama"}, {"model_type": "llama"}),
        (
            {
                "text_config": {"torch_dtype": "bfloat16", "a": 1},
                "vision_config": {"dtype": "float16"},
            },
            {
                "text_config": {"torch_dtype": "float32", "a": 1},
                "vision_config": {"dtype": "float32"},
            },
        ),
        ({"text_config": {"hidden_size": 8}}, {"text_config": {"hidden_size": 8}}),
        ({"rope": {"dtype": "float16"}}, {"rope": {"dtype": "float16"}}),  # not a part of the model
        ({"audio_config": {"dtype": "int8"}}, {"audio_config": {"dtype": "int8"}}),
    ],
)
def test_the_config_names_the_precision_written_where_the_donors_names_one(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    made = plan(recipe("linear", "a", "b", dtype="float32"))

    assert fitted(config, made) == expected


def test_the_precision_named_is_that_of_most_parameters_not_of_most_tensors() -> None:
    wide = of_dtype(DType.F32, EMBEDDING, HEAD, "model.layers.0.mlp.up_proj.weight")
    norms = {f"layers.{i}.norm.weight": (DType.BF16, (4,)) for i in range(40)}
    made = plan(recipe("passthrough", "a"), [catalog("a", {**wide, **norms})])

    assert fitted({"dtype": "bfloat16"}, made) == {"dtype": "float32"}


def test_another_parts_precision_is_left_alone_while_some_tensors_have_it() -> None:
    made = plan(recipe("passthrough", "a"), [catalog("a", of_dtype(DType.F32, NORM))])
    config = {
        "dtype": "float16",
        "text_config": {"dtype": "float16"},
        "vision_config": {"dtype": "float32"},
    }

    assert fitted(config, made) == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16"},
        "vision_config": {"dtype": "float32"},
    }


def test_integers_name_no_precision() -> None:
    made = plan(recipe("passthrough", "a"), [catalog("a", {"w": (DType.I64, (4,))})])

    assert fitted({"dtype": "bfloat16"}, made) == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("donor", "other", "config", "expected"),
    [
        pytest.param(TIED, TIED, SAYS_TIED, SAYS_TIED, id="all tied"),
        pytest.param(MODEL, MODEL, SAYS_UNTIED, SAYS_UNTIED, id="all untied"),
        pytest.param(TIED, MODEL, SAYS_TIED, SAYS_UNTIED, id="a tied donor, another has a head"),
        pytest.param(TIED, MODEL, {}, SAYS_UNTIED, id="a silent donor without the head written"),
        pytest.param(MODEL, TIED, {}, {}, id="a silent donor with the head written"),
        pytest.param(TIED, TIED, {}, {}, id="a silent donor, no head written"),
        pytest.param(
            TIED,
            MODEL,
            {"text_config": {**SAYS_TIED, "a": 1}},
            {"text_config": {**SAYS_UNTIED, "a": 1}},
            id="said in the language model's part",
        ),
        pytest.param(
            TIED,
            MODEL,
            {**SAYS_TIED, "text_config": SAYS_TIED},
            {**SAYS_UNTIED, "text_config": SAYS_UNTIED},
            id="said twice",
        ),
        pytest.param(
            TIED, MODEL, {"text_config": {}}, {"text_config": {}, **SAYS_UNTIED}, id="silent parts"
        ),
        pytest.param(
            TIED,
            MODEL,
            {**SAYS_TIED, "vision_config": SAYS_TIED},
            {**SAYS_UNTIED, "vision_config": SAYS_TIED},
            id="another part's tie is not ours",
        ),
    ],
)
def test_the_config_says_tied_exactly_where_no_head_is_written(
    donor: Tensors, other: Tensors, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    catalogs = [catalog("a", donor, config=config), catalog("b", other)]

    assert fitted(config, plan(recipe("linear", "a", "b"), catalogs)) == expected


def test_a_dropped_head_leaves_the_model_tied() -> None:
    made = plan(recipe("linear", "a", "b", drop=HEAD))

    assert fitted(SAYS_UNTIED, made) == SAYS_TIED
    assert fitted({}, made) == SAYS_TIED


def test_a_model_without_embedding_says_nothing_of_ties() -> None:
    made = plan(recipe("linear", "a", "b", drop=[HEAD, EMBEDDING]))

    assert fitted(SAYS_UNTIED, made) == SAYS_UNTIED


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(scalars, lambda inner: st.dictionaries(st.text(), inner), max_leaves=4)
CONVERTED = plan(recipe("linear", "a", "b", dtype="float32"))


@settings(deadline=None, max_examples=40)
@given(
    config=st.dictionaries(st.sampled_from(["a_config", "é", "rope", ""]), nested),
    tied=st.booleans(),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_nothing_but_precision_and_tie_is_touched(
    config: dict[str, Any], *, tied: bool, dtype: str
) -> None:
    whole = {**config, "dtype": dtype, "tie_word_embeddings": tied}

    after = fitted(whole, CONVERTED)
    assert list(after) == list(whole)
    assert {key: after[key] for key in config} == config
    assert (after["dtype"], after["tie_word_embeddings"]) == ("float32", False)


def test_what_is_written_contradicts_no_tensor(tmp_path: Path) -> None:
    own, tied = tiny_llama_tensors(1), tiny_llama_tensors(1, tied=True)
    write_checkpoint(tmp_path / "a", tied, config=llama_config(tied, tied=True))
    write_checkpoint(tmp_path / "b", own, config=llama_config(own))
    folders = {label: PosixFolder(tmp_path / label) for label in "ab"}
    catalogs = [read_catalog(folder, label=label) for label, folder in folders.items()]
    made = plan(recipe("linear", "a", "b", dtype="float16"), catalogs)

    out = tmp_path / "out"
    written = {
        node.slot.name: torch.zeros(node.slot.shape, dtype=torch.half) for node in made.nodes
    }
    write_checkpoint(out, written)
    for name, content in side_files(made, folders["a"]).items():
        (out / name).write_bytes(content)
    assert list(config_problems(read_catalog(PosixFolder(out), label="out"))) == []


@pytest.mark.parametrize(
    "name", ["scheduler.py", "scaler.py", "events.out.py", "Optimizer_utils.py"]
)
def test_code_of_the_model_is_no_rest_of_its_training(name: str) -> None:
    assert why_left_out(name, 100) is None
