from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from raymerge.checkpoint.catalog import Catalog, read_catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.index import INDEX_NAME, parse_index
from raymerge.errors import SourceError
from raymerge.storage.posix import PosixFolder
from tests.checkpoints import tiny_llama_tensors, write_checkpoint, write_index

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
AB = {"a": torch.zeros(4), "b": torch.ones(4)}


def read(path: Path) -> Catalog:
    return read_catalog(PosixFolder(path), label="src")


def refused(path: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(path)
    assert "src" in str(caught.value)
    return caught.value


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Tensors a and b in a shard each, indexed."""
    return write_checkpoint(tmp_path / "model", AB, max_shard_bytes=16)


@pytest.mark.parametrize("max_shard_bytes", [None, 1, 5000])
def test_every_tensor_is_found_however_the_checkpoint_is_sharded(
    tmp_path: Path,
    max_shard_bytes: int | None,
) -> None:
    tensors = tiny_llama_tensors(0)
    path = write_checkpoint(tmp_path, tensors, max_shard_bytes=max_shard_bytes, config={"a": 1})
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"")
    (path / "original").mkdir()

    catalog = read(path)

    assert catalog.tensors.keys() == tensors.keys()
    for name, entry in catalog.tensors.items():
        assert (entry.shape, entry.dtype) == (tuple(tensors[name].shape), DType.BF16)
        raw = PosixFolder(path).read(entry.file, entry.start, entry.stop)
        assert raw == tensors[name].view(torch.uint8).numpy().tobytes()
    addresses = [(entry.file, entry.start) for entry in catalog.tensors.values()]
    assert addresses == sorted(addresses)
    assert catalog.pins.keys() == {entry.file for entry in catalog.tensors.values()}
    assert catalog.config == {"a": 1}
    assert catalog.side_files == ("config.json", "tokenizer.json")


def test_a_single_file_is_a_checkpoint_whatever_its_name(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, AB) / "model.safetensors"
    other = path.rename(tmp_path / "weights.safetensors")

    assert read(other).tensors.keys() == read(tmp_path).tensors.keys() == AB.keys()


def test_files_the_index_does_not_name_are_left_alone(sharded: Path) -> None:
    (sharded / "consolidated.safetensors").write_bytes(b"")

    assert read(sharded).tensors.keys() == AB.keys()


def test_an_indexed_shard_that_is_absent_is_refused(sharded: Path) -> None:
    (sharded / SECOND).unlink()

    error = refused(sharded)

    assert f"names 2 shards and {SECOND} is missing" in str(error)
    assert error.file == SECOND


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "b": SECOND, "c": SECOND}, f"places tensor 'c' in {SECOND}, which does not"),
        ({"b": SECOND}, f"by its name {FIRST} belongs to the set"),
        ({"a": FIRST}, f"by its name {SECOND} belongs to the set"),
        (
            {"a": FIRST, "b": SECOND, "a.b": FIRST},
            f"places tensor 'a.b' in {FIRST}, which does not",
        ),
        ({"a": SECOND, "b": FIRST}, f"places tensor 'a' (and 1 others) in {SECOND}; it lies in"),
    ],
    ids=["no such tensor", "shard left out", "other shard left out", "nor such a one", "swapped"],
)
def test_an_index_that_lies_about_its_shards_is_refused(
    sharded: Path,
    weight_map: dict[str, str],
    message: str,
) -> None:
    write_index(sharded, weight_map)

    assert message in str(refused(sharded))


def test_a_tensor_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {**AB, "mtp.fc.weight": torch.zeros(1)}, max_shard_bytes=99)
    write_index(tmp_path, dict.fromkeys(AB, "model-00001-of-00001.safetensors"))

    assert "holds tensor 'mtp.fc.weight', which" in str(refused(tmp_path))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_shards_is_refused(sharded: Path, *, indexed: bool) -> None:
    (sharded / FIRST).write_bytes((sharded / SECOND).read_bytes())
    if not indexed:
        (sharded / INDEX_NAME).unlink()

    error = refused(sharded)

    assert f"tensor 'b' lies in both {FIRST} and {SECOND}" in str(error)
    assert error.tensor == "b"


def test_an_index_beside_a_single_file_it_does_not_name_is_refused(sharded: Path) -> None:
    write_checkpoint(sharded, AB)

    assert "Some loaders take the one, some the other" in str(refused(sharded))


def test_without_an_index_a_whole_set_of_shards_is_read_and_a_partial_one_refused(
    sharded: Path,
) -> None:
    (sharded / INDEX_NAME).unlink()
    assert read(sharded).tensors.keys() == AB.keys()

    (sharded / FIRST).unlink()
    assert f"{FIRST} is missing" in str(refused(sharded))


def test_a_lora_adapter_is_refused_by_name(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, AB) / "model.safetensors"
    path.rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")

    assert "LoRA adapter" in str(refused(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_command_that_converts_them(
    tmp_path: Path,
    name: str,
) -> None:
    (tmp_path / name).write_bytes(b"")

    message = str(refused(tmp_path))

    assert message.split(": ", 1)[1].startswith(f"{name} is pickled, and merges read safetensors")
    assert f"raymerge convert {tmp_path} {tmp_path}-safetensors" in message


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "holds no .safetensors file" in str(refused(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path, AB)
    (tmp_path / "config.json").write_text(text)

    assert refused(tmp_path).file == "config.json"


def test_a_config_may_hold_what_transformers_takes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, AB)
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "a": 1, "a": 2}')

    assert read(tmp_path).config["a"] == 2


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        [],
        {"a": 1},
        {"a": None},
        {"a": ["model.safetensors"]},
        {"a": ""},
        {"a": "../model.safetensors"},
        {"a": "/etc/model.safetensors"},
        {"a": "sub\\model.safetensors"},
        {"a": "..safetensors"},
        {"a": "pytorch_model.bin"},
    ],
)
def test_an_index_without_plain_file_names_is_refused(weight_map: object) -> None:
    raw = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()

    with pytest.raises(SourceError, match=r"weight_map|expected the name of a"):
        parse_index(raw, source="src", file=INDEX_NAME)


def test_an_index_that_places_a_tensor_twice_is_refused() -> None:
    raw = f'{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}'.encode()

    with pytest.raises(SourceError, match="'a' occurs twice"):
        parse_index(raw, source="src", file=INDEX_NAME)


def test_an_error_in_a_shard_names_source_and_file(sharded: Path) -> None:
    with (sharded / SECOND).open("ab") as file:
        file.truncate(file.tell() - 3)

    error = refused(sharded)

    assert (error.source, error.file, error.tensor) == ("src", SECOND, "b")
    assert "3 are missing" in str(error)
