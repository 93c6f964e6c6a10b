from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import (
    MAX_HEADER_BYTES,
    Header,
    build_header,
    parse_header,
    read_header,
)
from raymerge.errors import PlanError, SourceError
from raymerge.storage.posix import PosixFolder

F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def parse(text: str | bytes, *, data_bytes: int = 16) -> Header:
    raw = text.encode() if isinstance(text, str) else text
    return parse_header(raw, file="f", source="src", file_bytes=8 + len(raw) + data_bytes)


def header_of(changes: Mapping[str, Any]) -> str:
    return json.dumps({"a": {**F32, **changes}})


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "0 bytes"),
    "leading space": (" {}", "does not start with '{'"),
    "a list": ("[]", "does not start with '{'"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8"),
    "cut JSON": ('{"a": {', "not valid JSON"),
    "text behind": ("{} x", "not valid JSON"),
    "NUL padding": ("{}\0\0", "not valid JSON"),
    "half a surrogate pair": (json.dumps({"\ud800": F32}), "surrogate"),
    "control character": ('{"a\n": 1}', "not valid JSON"),
    "too deep": ('{"a":' + "[" * 200_000, "nested too deep"),
    "deep and closed": ('{"a":' + "[" * 900 + "]" * 900 + "}", "deep|expected an object"),
    "digits without end": (f'{{"a": {"1" * 5000}}}', "not valid JSON"),
    "tensor twice": (f'{{"a": {json.dumps(F32)}, "a": {json.dumps(F32)}}}', "'a' occurs twice"),
    "field twice": ('{"a": {"dtype": "F32", "dtype": "F32"}}', "'dtype' occurs twice"),
    "metadata of numbers": ('{"__metadata__": {"a": 1}}', "object of strings"),
    "metadata null": ('{"__metadata__": null}', "object of strings"),
    "metadata a list": ('{"__metadata__": []}', "object of strings"),
    "entry null": ('{"a": null}', "expected an object with dtype"),
    "entry of three letters": ('{"a": "abc"}', "expected an object with dtype"),
    "no shape": ('{"a": {"dtype": "F32", "data_offsets": [0, 16]}}', "its fields are"),
    "other field": ('{"a": {"dtype": "F32", "shape": [4], "offsets": [0, 16]}}', "its fields are"),
    "one field more": (header_of({"stride": [2, 1]}), "its fields are"),
    "dtype unknown": (header_of({"dtype": "F33"}), 'its dtype is "F33"; known are BOOL'),
    "dtype lower case": (header_of({"dtype": "f32"}), "known are"),
    "dtype a list": (header_of({"dtype": ["F32"]}), "known are"),
    "shape of booleans": (header_of({"shape": [True, 4]}), "its shape is"),
    "shape of floats": (header_of({"shape": [2.0, 2]}), "its shape is"),
    "shape negative": (header_of({"shape": [-2, -2]}), "its shape is"),
    "shape a string": (header_of({"shape": ""}), "its shape is"),
    "shape an object": (header_of({"shape": {}}), "its shape is"),
    "shape beyond u64": (header_of({"shape": [0, 2**70], "data_offsets": [0, 0]}), "2\\^64 bits"),
    "shape overflows": (header_of({"shape": [2**40, 2**40, 0]}), "2\\^64 bits"),
    "shape too large": (header_of({"shape": [2, 3]}), "span 16 bytes; .* make 24 bytes"),
    "half a byte": (header_of({"dtype": "F4", "shape": [31]}), "make 124 bits"),
    "offsets reversed": (header_of({"data_offsets": [16, 0]}), "start <= stop"),
    "offsets of booleans": (header_of({"data_offsets": [False, 16]}), "start <= stop"),
    "offsets negative": (header_of({"data_offsets": [-16, 0]}), "start <= stop"),
    "offsets of floats": (header_of({"data_offsets": [0, 16.0]}), "start <= stop"),
    "three offsets": (header_of({"data_offsets": [0, 8, 16]}), "start <= stop"),
    "offsets beyond u64": (header_of({"data_offsets": [2**64, 2**64 + 16]}), "start <= stop"),
    "offsets in a string": (header_of({"data_offsets": "ab"}), "start <= stop"),
    "hole at the start": (header_of({"data_offsets": [4, 20]}), "a hole of 4 bytes"),
    "hole": (json.dumps({"a": F32, "b": {**F32, "data_offsets": [24, 40]}}), "a hole of 8 bytes"),
    "overlap": (json.dumps({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}), "overlaps"),
    "same bytes twice": (json.dumps({"a": F32, "b": F32}), "overlaps"),
    "empty tensor inside": (
        json.dumps({"a": F32, "b": {"dtype": "U8", "shape": [0], "data_offsets": [5, 5]}}),
        "overlaps",
    ),
    "nobody's bytes": (header_of({"shape": [3], "data_offsets": [0, 12]}), "4 bytes lie behind"),
    "data without tensors": ("{}", "16 bytes lie behind"),
    "cut short": (header_of({"shape": [9], "data_offsets": [0, 36]}), "20 are missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_header_is_refused_and_the_message_says_what_is_wrong(name: str) -> None:
    text, message = HOSTILE[name]

    with pytest.raises(SourceError, match=message) as caught:
        parse(text)

    assert caught.value.exit_code == 3
    assert "src: f" in str(caught.value)


# The stock reader keeps the last of two equal keys and skips fields it does not know.
LOADED_BY_STOCK = {"tensor twice", "one field more"}


def stock_load(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", HOSTILE)
def test_the_stock_reader_refuses_the_same_headers_but_for_two(name: str, tmp_path: Path) -> None:
    text, _ = HOSTILE[name]
    raw = text.encode() if isinstance(text, str) else text
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(16))

    if name in LOADED_BY_STOCK:
        assert stock_load(path)
        return
    with pytest.raises((SafetensorError, OSError)):
        stock_load(path)


def test_a_tensor_is_named_in_the_error_about_it() -> None:
    with pytest.raises(SourceError) as caught:
        parse(header_of({"dtype": "F33"}))

    assert (caught.value.source, caught.value.file, caught.value.tensor) == ("src", "f", "a")


@pytest.mark.parametrize(
    ("text", "data_bytes"),
    [
        pytest.param("{}", 0, id="no tensor"),
        pytest.param("{}      ", 0, id="padded"),
        pytest.param('{"__metadata__":{}}', 0, id="empty metadata"),
        pytest.param('{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4, id="scalar"),
        pytest.param('{"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}', 0, id="empty"),
        pytest.param('{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}', 2, id="packed"),
        pytest.param(
            '{"\\u00e9\\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
            id="escapes",
        ),
    ],
)
def test_an_odd_header_that_breaks_no_rule_is_read(text: str, data_bytes: int) -> None:
    assert parse(text, data_bytes=data_bytes).data_start == 8 + len(text)


def test_entries_come_in_the_order_of_their_bytes_with_addresses_in_the_file() -> None:
    first = {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}
    last = {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [3, 3]}

    header = parse(json.dumps({"z": last, "e": empty, "a": first}), data_bytes=5)

    assert [entry.name for entry in header.entries] == ["a", "e", "z"]
    z = header.entries[2]
    assert (z.start, z.stop) == (header.data_start + 3, header.data_start + 5)
    assert (z.nbytes, z.num_elements, z.dtype) == (2, 2, DType.U8)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__",
)
dtypes = st.sampled_from([dtype for dtype in DType if dtype.bits >= 8])
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.lists(st.tuples(names, dtypes, shapes), max_size=12, unique_by=lambda t: t[0])


@given(tensors, st.dictionaries(names, names, max_size=3))
def test_a_header_that_was_built_reads_back_as_it_was_meant(
    specs: list[tuple[str, DType, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    built = build_header(specs, metadata)
    data_bytes = sum(dtype.num_bytes(shape) for _, dtype, shape in specs)

    header = parse(built[8:], data_bytes=data_bytes)

    assert len(built) % 8 == 0
    assert int.from_bytes(built[:8], "little") == len(built) - 8
    assert header.metadata == metadata
    read = {entry.name: (entry.dtype, entry.shape) for entry in header.entries}
    assert read == {name: (dtype, shape) for name, dtype, shape in specs}


@given(
    specs=st.dictionaries(
        names,
        st.tuples(st.sampled_from([DType.F64, DType.F32, DType.BF16, DType.U8]), shapes),
    ),
)
def test_a_file_laid_out_by_hand_is_the_stock_writers_file(
    specs: dict[str, tuple[DType, tuple[int, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    widest_first = list(DType)[::-1]
    order = sorted(specs, key=lambda name: (widest_first.index(specs[name][0]), name.encode()))
    content = {
        name: torch.full(shape, 3, dtype=getattr(torch, dtype.torch_name))
        for name, (dtype, shape) in specs.items()
    }
    stock = tmp_path_factory.mktemp("stock") / "model.safetensors"
    save_file(content, stock, metadata={"format": "pt"})

    ours = build_header([(name, *specs[name]) for name in order], {"format": "pt"})
    ours += b"".join(bytes(content[name].flatten().view(torch.uint8).tolist()) for name in order)

    assert ours == stock.read_bytes()


def test_a_header_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(PlanError, match="Lower --shard-size"):
        build_header([("a" * MAX_HEADER_BYTES, DType.U8, (1,))], {})


def write(folder: Path, content: bytes) -> PosixFolder:
    (folder / "m.safetensors").write_bytes(content)
    return PosixFolder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"\1\0\0\0\0\0\0", "has 7 bytes"),
        (struct.pack("<Q", 0), "claims 0 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "claims 100000001 bytes"),
        (struct.pack("<Q", 2**64 - 1), "claims 18446744073709551615 bytes"),
        (struct.pack("<Q", 10) + b"{}", "at least 8 bytes are missing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "claims"),
    ],
)
def test_a_file_without_a_whole_header_is_refused(
    tmp_path: Path,
    content: bytes,
    message: str,
) -> None:
    with pytest.raises(SourceError, match=message):
        read_header(write(tmp_path, content), "m.safetensors", source="src")


@pytest.mark.parametrize("length", [2, 99_992, 99_999, 100_000, 100_001])
def test_a_header_of_any_length_is_read_whole(tmp_path: Path, length: int) -> None:
    content = struct.pack("<Q", length) + b"{}".ljust(length)

    assert (
        read_header(write(tmp_path, content), "m.safetensors", source="s").data_start == 8 + length
    )


def test_the_longest_header_allowed_is_read_and_one_byte_more_is_not() -> None:
    assert parse(b"{}".ljust(MAX_HEADER_BYTES), data_bytes=0).entries == ()
    with pytest.raises(SourceError, match="expected 1 to 100000000"):
        parse(b"{}".ljust(MAX_HEADER_BYTES + 1), data_bytes=0)
