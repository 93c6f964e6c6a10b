"""`raymerge convert`: pickles become safetensors, whole or absent, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import raymerge
from tests.checkpoints import llama_config, tiny_llama_tensors
from tests.conftest import Place, finish, raw, read_tensors, shard_hashes, spawn
from tests.servers.hub_state import Hub

INDEX = "model.safetensors.index.json"


def pickled(
    path: Path,
    tensors: Any,
    *,
    config: dict[str, Any] | None = None,
    name: str = "pytorch_model.bin",
    legacy: bool = False,
) -> Path:
    """A folder with one pickled file, as torch writes it."""
    path.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path / name, _use_new_zipfile_serialization=not legacy)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def sharded(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A folder with two pickled shards and their index."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:5], names[5:]), start=1):
        file = f"pytorch_model-{i:05}-of-00002.bin"
        pickled(path, {name: tensors[name] for name in part}, name=file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(llama_config(tensors)))
    return path


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, raw(one[name]))
        == (other[name].dtype, other[name].shape, raw(other[name]))
        for name in one
    )


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_becomes_the_same_checkpoint(place: Place, legacy: bool) -> None:  # noqa: FBT001
    tensors = tiny_llama_tensors(0)
    source = pickled(place / "old", tensors, config=llama_config(tensors), legacy=legacy)
    for name in ("tokenizer.json", "README.md", "LICENSE"):
        (source / name).write_text("{}")
    done = place.run("convert", source, place / "new", "--shard-size", "6kB")

    assert done.rc == 0, done.err
    assert same(read_tensors(place / "new"), tensors)
    assert place.run("verify", place / "new").rc == 0
    assert {p.name for p in (place / "new").iterdir() if "safetensors" not in p.name} == {
        "config.json", "tokenizer.json", "README.md", "LICENSE", "raymerge.json",
    }  # fmt: skip
    assert ("before torch 1.6" in done.err) == legacy


def test_a_pickle_of_the_hub_is_copied_to_this_machine_first(place: Place, hub: Hub) -> None:
    tensors = tiny_llama_tensors(0)
    source = pickled(place / "old", tensors, config=llama_config(tensors))
    hub.add("o/m", {path.name: path.read_bytes() for path in source.iterdir()})

    assert place.run("convert", "hf://o/m", place / "new").rc == 0
    assert same(read_tensors(place / "new"), tensors)


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("old", "s3://bucket/new", "s3://bucket/new is not on this machine; give a folder"),
        ("memory://m/old", "new", "pickles are read from files only; copy it to this machine"),
    ],
)
def test_what_is_not_on_this_machine_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, source: str, out: str, words: str
) -> None:
    pickled(place / "old", tiny_llama_tensors(0))
    monkeypatch.chdir(place.path)
    done = place.run("convert", source, out)
    assert done.rc == 3
    assert words in done.err
    assert sorted(path.name for path in place.path.iterdir()) == ["old"]


def test_shards_become_shards_in_the_order_of_a_merge(place: Place) -> None:
    tensors = tiny_llama_tensors(0)
    source = sharded(place / "old", tensors)
    assert place.run("convert", source, place / "new", "--shard-size", "6kB").rc == 0
    place.model("safe", read_tensors(place / "new"), config=llama_config(tensors))
    place.model("single", tensors, config=llama_config(tensors))
    place.merged(place.recipe("passthrough", ["single"]), "copied", "--shard-size", "6kB")

    assert same(read_tensors(place / "new"), tensors)
    order = [json.loads((place / out / INDEX).read_text()) for out in ("new", "copied")]
    assert order[0]["metadata"] == order[1]["metadata"]
    assert set(shard_hashes(place / "new")) == set(shard_hashes(place / "copied"))


def test_safetensors_are_cut_into_other_shards(place: Place) -> None:
    base = place.llamas()
    done = place.run("convert", place / "base", place / "new", "--shard-size", "5kB", "--json")

    assert same(read_tensors(place / "new"), base)
    assert place.run("verify", place / "new").rc == 0
    document = done.json
    assert list(document) == [
        "source", "output", "digest", "format", "dtype", "tensors", "parameters", "cast", "tied",
        "bytes_read", "bytes_written", "seconds", "notes", "shards",
    ]  # fmt: skip
    assert (document["format"], document["cast"], document["tied"]) == ("safetensors", 0, [])
    assert document["bytes_written"] == sum(tensor.nbytes for tensor in base.values())
    assert {s["name"]: s["sha256"] for s in document["shards"]} == shard_hashes(place / "new")


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_a_dtype_rounds_as_torch_does_and_the_config_says_so(
    place: Place, target: str, form: str
) -> None:
    tensors = tiny_llama_tensors(0, dtype=torch.float32)
    tensors["model.steps"] = torch.arange(5)
    config = llama_config(tensors, torch_dtype="float32")
    if form == "pickle":
        pickled(place / "old", tensors, config=config)
    else:
        place.model("old", tensors, config=config)
    done = place.run("convert", place / "old", place / "new", "--dtype", target, "--json").json

    dtype: torch.dtype = getattr(torch, target)
    expected = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    assert same(read_tensors(place / "new"), expected)
    written = json.loads((place / "new" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == (target, target)
    assert done["cast"] == (0 if target == "float32" else len(tensors) - 1)
    assert place.run("verify", place / "new").rc == 0


def test_a_config_that_had_the_precision_wrong_is_put_right(place: Place) -> None:
    tensors = tiny_llama_tensors(0, dtype=torch.float16)
    pickled(place / "old", tensors, config=llama_config(tensors, dtype="float32"))
    done = place.run("convert", place / "old", place / "new")

    assert 'config.json: dtype is now "float16"' in done.err
    assert place.run("verify", place / "new").rc == 0


def test_the_python_call_is_the_command(place: Place) -> None:
    tensors = tiny_llama_tensors(0)
    pickled(place / "old", tensors)
    done = raymerge.convert(place / "old" / "pytorch_model.bin", place / "new", shard_bytes=5000)

    assert done.tensors == len(tensors)
    assert len(done.shards) > 1
    assert same(read_tensors(place / "new"), tensors)


# --- memory that is shared, and memory that is not in order --------------------------------------


def tied(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = tiny_llama_tensors(0, dtype=dtype)
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}


@pytest.mark.parametrize("said", [True, None])
def test_a_tied_head_is_written_once(place: Place, said: bool | None) -> None:  # noqa: FBT001
    tensors = tied()
    config = llama_config(tensors, tied=True)
    if said is None:
        del config["tie_word_embeddings"]
    pickled(place / "old", tensors, config=config)
    done = place.run("convert", place / "old", place / "new", "--json").json

    assert done["tied"] == [{"name": "lm_head.weight", "same_as": "model.embed_tokens.weight"}]
    assert "lm_head.weight" not in read_tensors(place / "new")
    written = json.loads((place / "new" / "config.json").read_text())
    assert written["tie_word_embeddings"] is True
    assert place.run("verify", place / "new").rc == 0


def test_a_head_that_the_config_calls_untied_is_written(place: Place) -> None:
    tensors = tied()
    pickled(place / "old", tensors, config=llama_config(tensors, tied=False))
    done = place.run("convert", place / "old", place / "new")

    assert "shares memory" in done.err
    assert same(read_tensors(place / "new"), tensors)
    assert place.run("verify", place / "new").rc == 0


def test_without_a_config_nobody_says_tied_and_both_are_written(place: Place) -> None:
    pickled(place / "old", tied())
    assert place.run("convert", place / "old", place / "new").rc == 0

    assert same(read_tensors(place / "new"), tied())


def test_layers_that_share_memory_keep_their_names(place: Place) -> None:
    """Only the model's class knows that it shares them: a loader would fill the gap with noise."""
    one = torch.ones(4, 4)
    pickled(place / "old", {"layers.0.w": one, "layers.1.w": one})
    done = place.run("convert", place / "old", place / "new")

    assert "layers.1.w shares memory with layers.0.w" in done.err
    assert set(read_tensors(place / "new")) == {"layers.0.w", "layers.1.w"}


def test_views_are_laid_out_in_the_order_of_their_indices(place: Place) -> None:
    whole = torch.arange(2 * 3 * 700_000, dtype=torch.float32)
    tensors = {
        "transposed": whole.reshape(3, -1).T,
        "strided": whole[::7],
        "row": whole.reshape(2, -1).T[None],
        "part": whole[5:11],
        "spread": torch.ones(1, 5).expand(300, 5),
        "none": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "mask": torch.tensor([True, False]),
    }
    pickled(place / "old", tensors)
    assert place.run("convert", place / "old", place / "new").rc == 0

    assert same(read_tensors(place / "new"), tensors)


def test_weights_inside_a_training_state_are_found_and_the_rest_is_named(place: Place) -> None:
    tensors = tiny_llama_tensors(0)
    pickled(place / "old", {"model": tensors, "epoch": 3, "optimizer": {"lr": 1.0}})
    (place / "old" / "optimizer.pt").write_bytes(b"x")
    done = place.run("convert", place / "old", place / "new")

    assert same(read_tensors(place / "new"), tensors)
    assert "epoch, optimizer" in done.err
    assert "optimizer.pt is left out" in done.err


def test_packed_archives_are_not_mapped(place: Place) -> None:
    """torch maps a record wherever it begins, and would take packed bytes for values."""
    tensors = {"w": torch.zeros(4096)}
    source = pickled(place / "old", tensors) / "pytorch_model.bin"
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in records.items():
            packed.writestr(name, content)
    done = place.run("convert", place / "old", place / "new")

    assert done.rc == 0, done.err
    assert "is compressed" in done.err
    assert same(read_tensors(place / "new"), tensors)


def test_transformers_loads_a_converted_model_whose_head_is_tied(place: Place) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()
    source = pickled(place / "old", model.state_dict(), config=model.config.to_dict())
    done = place.run("convert", source, place / "new", "--json").json
    assert [left["name"] for left in done["tied"]] == ["lm_head.weight"]

    loaded, report = GPT2LMHeadModel.from_pretrained(place / "new", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    prompt = torch.arange(7)[None]
    assert torch.equal(loaded.eval()(prompt).logits, model(prompt).logits)


# --- what is refused -----------------------------------------------------------------------------


class Bomb:
    """Pickled, it asks whoever reads it to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_refused_and_not_run(
    place: Place, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    bomb = {"w": torch.ones(3), "b": Bomb(place / "ran")}
    source = pickled(place / "old", bomb, legacy=form == "legacy")
    if form == "bare":
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(place / "ran")))
    done = place.run("convert", source, place / "new", "--json")

    assert (done.rc, done.error["type"]) == (3, "SourceError")
    assert done.error["file"] == "pytorch_model.bin"
    assert "weights_only" not in done.err
    if form != "bare":
        assert "mkdir" in done.err
    assert not (place / "ran").exists()
    assert not (place / "new").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"hello", b"\x00" * 999])
def test_what_is_no_checkpoint_is_refused(place: Place, content: bytes) -> None:
    (place / "old").mkdir()
    (place / "old" / "pytorch_model.bin").write_bytes(content)
    done = place.run("convert", place / "old", place / "new", "--json")

    assert (done.rc, done.error["type"]) == (3, "SourceError")
    assert "pytorch_model.bin cannot be read" in done.err or "holds no plain" in done.err
    assert "Re-running" not in done.err
    assert not (place / "new").exists()


def test_a_file_that_is_cut_short_is_refused_at_any_length(place: Place) -> None:
    source = pickled(place / "old", {"a": torch.ones(300), "b": torch.ones(5)})
    whole = (source / "pytorch_model.bin").read_bytes()
    for length in range(0, len(whole), 97):
        (source / "pytorch_model.bin").write_bytes(whole[:length])
        assert place.run("convert", source, place / "new").rc == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "is a list"),
        ({}, "it is empty"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({3: torch.ones(2)}, "calls a tensor 3"),
        ({"__metadata__": torch.ones(2)}, "__metadata__"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "complex128"),
        ({"a": torch.eye(2).to_sparse()}, "expected dense"),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(place: Place, content: Any, words: str) -> None:
    pickled(place / "old", content)
    done = place.run("convert", place / "old", place / "new")

    assert done.rc == 3
    assert words in done.err


def test_a_checkpoint_without_tensors_is_refused(place: Place) -> None:
    place.model("old", {})
    done = place.run("convert", place / "old", place / "new")

    assert done.rc == 3
    assert "no tensor" in done.err


def test_a_missing_shard_and_a_false_index_are_refused(place: Place) -> None:
    source = sharded(place / "old", tiny_llama_tensors(0))
    index = json.loads((source / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["ghost"] = "pytorch_model-00001-of-00002.bin"
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "ghost" in place.run("convert", source, place / "new").err
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    done = place.run("convert", source, place / "new")
    assert done.rc == 3
    assert "pytorch_model-00002-of-00002.bin" in done.err
    (source / "pytorch_model.bin.index.json").unlink()
    assert "pytorch_model-00002-of-00002.bin" in place.run("convert", source, place / "new").err


def test_the_message_that_refuses_pickles_names_a_command_that_works(place: Place) -> None:
    tensors = tiny_llama_tensors(0)
    pickled(place / "old", tensors, config=llama_config(tensors))
    refused = place.merge(place.recipe("passthrough", ["old"]), "out")
    assert refused.rc == 3
    command = refused.err.strip().rpartition("raymerge convert ")[2].split()

    assert place.run("convert", *command).rc == 0
    assert same(read_tensors(Path(command[1])), tensors)


def test_a_value_beyond_the_range_leaves_nothing_behind(place: Place) -> None:
    place.model("old", {"fine": torch.ones(5), "w": torch.tensor([1.0, 7e4])})
    done = place.run("convert", place / "old", place / "new", "--dtype", "float16", "--json")

    assert (done.rc, done.error["type"], done.error["tensor"]) == (1, "NonFiniteError", "w")
    assert "element 1" in done.err
    assert not (place / "new").exists()


def test_what_is_not_finite_already_stays(place: Place) -> None:
    place.model("old", {"mask": torch.tensor([0.0, -torch.inf, torch.nan])})
    assert place.run("convert", place / "old", place / "new", "--dtype", "float16").rc == 0

    (found,) = read_tensors(place / "new").values()
    assert found[:2].tolist() == [0.0, -torch.inf]
    assert found.isnan().tolist() == [False, False, True]


def test_a_quantised_source_keeps_its_scales(place: Place) -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    scales = torch.ones(1, 1)
    tensors = {"l.weight": codes, "l.weight_scale_inv": scales}
    place.model("old", tensors, config={"quantization_config": {"quant_method": "fp8"}})

    assert place.run("convert", place / "old", place / "new").rc == 0
    assert same(read_tensors(place / "new"), tensors)
    done = place.run("convert", place / "old", place / "half", "--dtype", "bfloat16")
    assert done.rc == 2
    assert "quantised" in done.err


# --- whole or absent -----------------------------------------------------------------------------


def test_out_is_not_taken_twice_unless_asked(place: Place) -> None:
    place.llamas()
    assert place.run("convert", place / "base", place / "new").rc == 0
    before = shard_hashes(place / "new")
    again = place.run("convert", place / "base", place / "new", "--json").json
    assert again["bytes_written"] == 0
    assert place.run("convert", place / "a", place / "new").rc == 2
    assert shard_hashes(place / "new") == before
    assert place.run("convert", place / "a", place / "new", "--overwrite").rc == 0
    assert shard_hashes(place / "new") != before
    assert place.run("convert", place / "a", place / "a", "--overwrite").rc == 2


def test_a_killed_run_leaves_no_checkpoint_and_the_next_one_a_whole_one(place: Place) -> None:
    tensors = {f"w{i}": torch.randn(2**18) for i in range(24)}
    source = pickled(place / "old", tensors)
    process = spawn("convert", source, place / "new", "--shard-size", "2MB")
    while not list((place / "new").glob(".raymerge/*/model-00012*")) and process.poll() is None:
        pass
    process.kill()
    finish(process)

    assert not (place / "new" / INDEX).exists()
    done = place.run("convert", source, place / "new", "--shard-size", "2MB")
    assert done.rc == 0, done.err
    assert same(read_tensors(place / "new"), tensors)
    assert not (place / "new" / ".raymerge").exists()
