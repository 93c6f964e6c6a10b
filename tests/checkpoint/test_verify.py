from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import Header, TensorEntry, build_header, parse_header
from raymerge.checkpoint.index import RECORD_NAME
from raymerge.checkpoint.scan import PIECE_BYTES, cut
from raymerge.checkpoint.verify import Verification, verify
from raymerge.errors import SourceError
from raymerge.storage.posix import PosixFolder
from tests.checkpoints import llama_config, tiny_llama_tensors, write_checkpoint, write_index

INDEX_NAME = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARD_BYTES = 5000


def check(path: Path) -> Verification:
    return verify(PosixFolder(path))


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("model-*.safetensors"))


def write(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    max_shard_bytes: int | None = SHARD_BYTES,
    **config: Any,
) -> Path:
    said = llama_config(tensors, **config)
    return write_checkpoint(path, tensors, max_shard_bytes=max_shard_bytes, config=said)


def write_record(path: Path) -> None:
    """What a merge leaves beside its shards."""
    written = [
        {
            "name": shard.name,
            "bytes": shard.stat().st_size,
            "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
        }
        for shard in shards(path)
    ]
    (path / RECORD_NAME).write_text(json.dumps({"shards": written}))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A sound sharded checkpoint with its record."""
    path = write(tmp_path / "model", tiny_llama_tensors(0))
    write_record(path)
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [None, 1, SHARD_BYTES])
def test_a_sound_checkpoint_has_no_problem(
    tmp_path: Path,
    max_shard_bytes: int | None,
    *,
    tied: bool,
) -> None:
    tensors = tiny_llama_tensors(0, tied=tied)

    found = check(write(tmp_path, tensors, max_shard_bytes=max_shard_bytes, tied=tied))

    assert found.ok, found.problems
    assert found.notes == ()
    assert found.tensors == len(tensors)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert not found.checked_sha256


def test_recorded_hashes_are_checked(clean: Path) -> None:
    found = check(clean)

    assert (found.ok, found.checked_sha256) == (True, True)
    assert [shard.sha256 for shard in found.shards] == [
        hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards(clean)
    ]


def flip_a_bit(path: Path) -> None:
    content = bytearray(shards(path)[1].read_bytes())
    content[-1] ^= 1
    shards(path)[1].write_bytes(content)


def cut_short(path: Path) -> None:
    content = shards(path)[1].read_bytes()
    shards(path)[1].write_bytes(content[:-2])


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(content | changes))

    return apply


def edit_weight_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        weight_map = json.loads((path / INDEX_NAME).read_text())["weight_map"]
        change(weight_map)
        write_index(path, weight_map)

    return apply


def add_stale(name: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).write_bytes(shards(path)[0].read_bytes())

    return apply


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a bit": (flip_a_bit, ("the merge wrote",)),
    "a cut": (cut_short, ("2 are missing", "could not be checked")),
    "an absent shard": (
        lambda path: shards(path)[1].unlink(),
        ("00002-of-00003.safetensors is missing", "could not be checked"),
    ),
    "a stale shard": (
        add_stale("model-00001-of-00009.safetensors"),
        ("model-00001-of-00009.safetensors is stale",),
    ),
    "a stale single file": (add_stale("model.safetensors"), ("Some loaders take the one",)),
    "no index": (
        lambda path: (path / INDEX_NAME).unlink(),
        ("there is no model.safetensors.index.json beside 3 shards",),
    ),
    "an index of nothing": (
        lambda path: (path / INDEX_NAME).write_text("{"),
        ("not valid JSON",),
    ),
    "a lost tensor": (
        edit_weight_map(lambda m: m.update({"mtp.fc.weight": m[HEAD]})),
        ("places tensor 'mtp.fc.weight' in",),
    ),
    "an unlisted tensor": (edit_weight_map(lambda m: m.pop(HEAD)), ("does not list",)),
    "a misplaced tensor": (
        edit_weight_map(lambda m: m.update({EMBEDDING: m[HEAD]})),
        (f"places tensor '{EMBEDDING}'",),
    ),
    "totals": (
        edit(INDEX_NAME, metadata={"total_size": 5, "total_parameters": 6}),
        ("total_size is 5", "total_parameters is 6"),
    ),
    "no totals object": (edit(INDEX_NAME, metadata=None), ("no metadata object",)),
    "a config cut": (lambda path: (path / "config.json").write_text("{"), ("not valid JSON",)),
    "dtype": (edit("config.json", dtype="float16"), ("float16, but 100.0% of the parameters",)),
    "vocabulary": (
        edit("config.json", vocab_size=33),
        (f"vocab_size is 33; {EMBEDDING} has 32 rows",),
    ),
    "a layer too few": (edit("config.json", num_hidden_layers=3), ("no tensor of layer 2",)),
    "a layer too many": (edit("config.json", num_hidden_layers=1), ("tensors of layer 1",)),
    "a false tie": (edit("config.json", tie_word_embeddings=True), ("their bytes differ",)),
    "another merge's record": (
        edit(RECORD_NAME, shards=[{"name": "x.safetensors", "bytes": 1, "sha256": ""}]),
        ("x.safetensors is in the record", *(["is not in the record"] * 3)),
    ),
    "a record of other lengths": (
        edit(RECORD_NAME, shards=[{"name": "model-00001-of-00003.safetensors", "bytes": 1}]),
        ("the merge wrote 1", "is not in the record", "is not in the record"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(clean: Path, fault: str) -> None:
    plant, expected = FAULTS[fault]
    plant(clean)

    problems = check(clean).problems

    assert len(problems) == len(expected), problems
    for sentence in expected:
        assert any(sentence in problem for problem in problems), problems


def test_all_faults_are_reported_together(clean: Path) -> None:
    flip_a_bit(clean)
    edit("config.json", vocab_size=1, num_hidden_layers=9)(clean)
    edit_weight_map(lambda m: m.pop(HEAD))(clean)

    assert len(check(clean).problems) == 4


def test_a_config_that_claims_a_head_which_is_absent_is_found(tmp_path: Path) -> None:
    write(tmp_path, tiny_llama_tensors(0, tied=True), tied=False)

    (problem,) = check(tmp_path).problems
    assert "there is no output head" in problem


def test_a_tied_head_stored_twice_is_a_note_while_its_bytes_agree(tmp_path: Path) -> None:
    tensors = tiny_llama_tensors(0)
    tensors[HEAD] = tensors[EMBEDDING].clone()
    found = check(write(tmp_path, tensors, tied=True))

    assert found.ok
    assert found.notes == (f"{HEAD} is tied to {EMBEDDING} and stored a second time",)


def test_a_tensor_in_two_shards_is_found(tmp_path: Path) -> None:
    write(tmp_path, tiny_llama_tensors(0))
    first, second, third = shards(tmp_path)
    third.write_bytes(second.read_bytes())

    assert any(
        f"lies in both {second.name} and {third.name}" in problem
        for problem in check(tmp_path).problems
    )
    assert first.exists()


def test_float32_exceptions_are_a_note(tmp_path: Path) -> None:
    tensors = tiny_llama_tensors(0)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    found = check(write(tmp_path, tensors))

    assert found.ok, found.problems
    assert found.notes == ("1 tensors are F32 where config.json says bfloat16",)


def test_other_safetensors_files_are_a_note(clean: Path) -> None:
    (clean / "consolidated.safetensors").write_bytes(b"")

    found = check(clean)

    assert found.ok, found.problems
    assert "consolidated.safetensors is not part" in found.notes[0]


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_found_in_every_floating_type(
    tmp_path: Path,
    dtype: torch.dtype,
    value: float,
) -> None:
    broken = torch.zeros(3, 5, dtype=dtype)
    broken[2, 4] = value
    largest = torch.full((7,), torch.finfo(dtype).max, dtype=dtype)
    codes = torch.full((8,), -1, dtype=torch.int16)
    write_checkpoint(tmp_path, {"a": largest, "b": broken, "c": -largest, "d": codes})

    assert check(tmp_path).problems == ("b in model.safetensors holds NaN or Inf",)


def test_nan_is_found_on_either_side_of_where_the_file_is_cut(tmp_path: Path) -> None:
    size = PIECE_BYTES // 2 + 100
    for position in (0, PIECE_BYTES // 2 - 1, PIECE_BYTES // 2, size - 1):
        broken = torch.zeros(size, dtype=torch.bfloat16)
        broken[position] = float("nan")
        write_checkpoint(tmp_path, {"a": torch.zeros(3, dtype=torch.bfloat16), "b": broken})

        assert len(check(tmp_path).problems) == 1, position


def test_a_file_whose_tensors_are_not_aligned_is_scanned_too(tmp_path: Path) -> None:
    header = build_header([("u", DType.U8, (3,)), ("a", DType.F32, (2,))], {})
    nan = b"\0\0\xc0\x7f"
    (tmp_path / "model.safetensors").write_bytes(header + bytes(7) + nan)

    assert check(tmp_path).problems == ("a in model.safetensors holds NaN or Inf",)


sizes = st.lists(st.tuples(st.sampled_from([DType.BF16, DType.F64, DType.U8]), st.integers(0, 90)))


@given(sizes, st.sampled_from([8, 32, 100]))
def test_pieces_tile_the_data_and_never_cut_an_element(
    specs: list[tuple[DType, int]],
    piece_bytes: int,
) -> None:
    header = header_of(specs)
    pieces = list(cut(header, piece_bytes=piece_bytes))

    end = header.data_start
    for piece in pieces:
        assert piece.start == end < piece.stop <= piece.start + piece_bytes
        assert {e.name for e in piece.entries if e.nbytes} == touched(
            header,
            piece.start,
            piece.stop,
        )
        for entry in piece.entries:
            inside = min(entry.stop, piece.stop) - max(entry.start, piece.start)
            assert inside % (entry.dtype.bits // 8) == 0
        end = piece.stop
    assert end == max([entry.stop for entry in header.entries], default=header.data_start)


def header_of(specs: list[tuple[DType, int]]) -> Header:
    tensors = [(f"t{i}", dtype, (size,)) for i, (dtype, size) in enumerate(specs)]
    raw = build_header(tensors, {})
    data_bytes = sum(dtype.num_bytes(shape) for _, dtype, shape in tensors)
    return parse_header(raw[8:], file="f", source="s", file_bytes=len(raw) + data_bytes)


def touched(header: Header, start: int, stop: int) -> set[str]:
    def is_touched(entry: TensorEntry) -> bool:
        return max(entry.start, start) < min(entry.stop, stop)

    return {entry.name for entry in filter(is_touched, header.entries)}


def test_a_folder_without_a_checkpoint_is_an_error_not_a_finding(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="safetensors file; it holds 0 other files"):
        check(tmp_path)
