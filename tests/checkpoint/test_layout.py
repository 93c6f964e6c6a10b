from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.index import INDEX_NAME, build_index, parse_index
from raymerge.checkpoint.layout import Shard, auto_shard_bytes, lay_out
from raymerge.checkpoint.verify import verify
from raymerge.storage.posix import PosixFolder, PosixShard

Specs = list[tuple[str, DType, tuple[int, ...]]]

specs = st.lists(
    st.tuples(
        st.text("abcdef.", min_size=1, max_size=8),
        st.sampled_from([DType.BF16, DType.F32, DType.U8, DType.I64]),
        st.lists(st.integers(0, 6), max_size=3).map(tuple),
    ),
    max_size=40,
    unique_by=lambda spec: spec[0],
)


def matrices(*sizes: int, dtype: DType = DType.U8) -> Specs:
    return [(f"t{i}", dtype, (size,)) for i, size in enumerate(sizes)]


def contents(shards: tuple[Shard, ...]) -> list[list[str]]:
    return [[slot.name for slot in shard.slots] for shard in shards]


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        pytest.param((), 10, [], id="nothing"),
        pytest.param((5, 5), 10, [["t0", "t1"]], id="exactly full"),
        pytest.param((5, 6), 10, [["t0"], ["t1"]], id="one byte over"),
        pytest.param((1, 20, 1), 10, [["t0"], ["t1"], ["t2"]], id="above the limit alone"),
        pytest.param((20, 0), 10, [["t0"], ["t1"]], id="alone means alone"),
        pytest.param((3, 3, 3, 3), 7, [["t0", "t1"], ["t2", "t3"]], id="greedy"),
    ],
)
def test_a_shard_closes_when_the_next_tensor_would_take_it_over_the_limit(
    sizes: tuple[int, ...],
    limit: int,
    expected: list[list[str]],
) -> None:
    assert contents(lay_out(matrices(*sizes), max_shard_bytes=limit)) == expected


def test_shards_are_numbered_from_one_also_when_there_is_one() -> None:
    several = lay_out(matrices(5, 5, 5), max_shard_bytes=5)
    single = lay_out(matrices(5), max_shard_bytes=5)

    assert [shard.name for shard in several][0::2] == [
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert single[0].name == "model-00001-of-00001.safetensors"


def test_wider_elements_come_first_in_a_shard_and_equal_ones_keep_their_order() -> None:
    tensors: Specs = [
        ("bytes", DType.U8, (3,)),
        ("half", DType.BF16, (1,)),
        ("other half", DType.F16, (1,)),
        ("wide", DType.F32, (1,)),
    ]

    assert contents(lay_out(tensors, max_shard_bytes=99)) == [
        ["wide", "half", "other half", "bytes"],
    ]


@given(specs, st.integers(1, 300))
def test_every_tensor_has_one_address_and_every_byte_one_tensor(specs: Specs, limit: int) -> None:
    shards = lay_out(specs, max_shard_bytes=limit)

    slots = [slot for shard in shards for slot in shard.slots]
    assert sorted((s.name, s.dtype, s.shape) for s in slots) == sorted(specs)
    for shard in shards:
        assert shard.data_bytes <= limit or len(shard.slots) == 1
        end = len(shard.header)
        for slot in shard.slots:
            assert slot.start == end
            assert slot.start % (slot.dtype.bits // 8) == 0
            end = slot.stop
        assert end == shard.nbytes


@given(specs, st.integers(1, 300))
def test_tensors_keep_their_order_across_shards(specs: Specs, limit: int) -> None:
    shards = lay_out(specs, max_shard_bytes=limit)

    given_order = iter(specs)
    for shard in shards:
        group = {next(given_order)[0] for _ in shard.slots}
        assert group == {slot.name for slot in shard.slots}


def test_bytes_dropped_at_their_addresses_in_any_order_load_in_the_stock_reader(
    tmp_path: Path,
) -> None:
    values = {
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.arange(4, dtype=torch.float32),
        "flag": torch.tensor([True, False, True]),
        "c": torch.tensor(7.0, dtype=torch.bfloat16),
    }
    types = {"b": DType.BF16, "a": DType.F32, "flag": DType.BOOL, "c": DType.BF16}
    tensors = [(name, types[name], tuple(value.shape)) for name, value in values.items()]
    shards = lay_out(tensors, max_shard_bytes=28)

    for shard in reversed(shards):
        with PosixShard(tmp_path / shard.name, shard.nbytes) as file:
            for slot in reversed(shard.slots):
                raw = values[slot.name].reshape(-1).view(torch.uint8).numpy().tobytes()
                file.write_at(raw, slot.start)
            file.write_at(shard.header, 0)
    (tmp_path / INDEX_NAME).write_bytes(build_index(shards))

    loaded: dict[str, torch.Tensor] = {}
    for shard in shards:
        loaded |= load_file(tmp_path / shard.name)
    assert len(shards) == 2
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in values.items()
    }
    assert verify(PosixFolder(tmp_path)).problems == ()


@pytest.mark.parametrize(
    ("output_bytes", "expected"),
    [
        (0, 256_000_000),
        (524_288_000_000, 256_000_000),
        (524_288_002_048, 256_000_001),
        (10_240_000_000_000, 5_000_000_000),
        (36_000_000_000_000, 5_000_000_000),
    ],
)
def test_auto_shards_are_a_2048th_of_the_output_within_bounds(
    output_bytes: int,
    expected: int,
) -> None:
    assert auto_shard_bytes(output_bytes) == expected


def test_an_index_reads_as_transformers_writes_it() -> None:
    shards = lay_out([("b", DType.BF16, (2, 3)), ("a", DType.F32, ())], max_shard_bytes=12)

    assert build_index(shards).decode() == (
        '{\n  "metadata": {\n    "total_parameters": 7,\n    "total_size": 16\n  },\n'
        '  "weight_map": {\n    "a": "model-00002-of-00002.safetensors",\n'
        '    "b": "model-00001-of-00002.safetensors"\n  }\n}\n'
    )


def test_an_index_that_would_pass_ten_mebibytes_is_written_compact() -> None:
    tensors: Specs = [(f"{i:05}" + "x" * 500, DType.U8, (1,)) for i in range(20_000)]
    shards = lay_out(tensors, max_shard_bytes=10_000)

    index = build_index(shards)

    assert index.count(b"\n") == 1
    assert len(parse_index(index, source="s", file=INDEX_NAME)) == 20_000
