"""Rows from here and there: any stretch of bytes, at any offset, is what the whole has there."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymerge.checkpoint.catalog import Catalog, read_catalog
from raymerge.checkpoint.dtypes import DType, promote
from raymerge.plan.graph import PlannedSource, Read
from raymerge.plan.remapped import CHUNK_ELEMENTS, Remapped, encode, stored, used_columns
from raymerge.runtime.derived import derived_filler
from raymerge.runtime.derived.elements import narrow, widen
from raymerge.runtime.readers import Readers
from raymerge.storage.posix import PosixFolder
from raymerge.tokenizer.rows import MEAN, NONE
from tests.checkpoints import write_checkpoint
from tests.conftest import raw

NAME = "model.embed_tokens.weight"
_ = NONE


def matrices(width: int, *dtypes: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(width)
    return [torch.randn((6, width), generator=generator).to(dtype) for dtype in dtypes]


class Sources:
    """Checkpoints of one matrix each, and the readers of them."""

    def __init__(self, folder: Path, tensors: list[Tensor]) -> None:
        self.catalogs: list[Catalog] = []
        for position, tensor in enumerate(tensors):
            path = write_checkpoint(folder / str(position), {NAME: tensor})
            self.catalogs.append(read_catalog(PosixFolder(path), label=str(position)))
        self.readers = Readers(
            [
                PlannedSource(
                    label=catalog.label,
                    location=catalog.location,
                    revision=None,
                    pins=catalog.pins,
                    side_files=(),
                    tensor_bytes=0,
                )
                for catalog in self.catalogs
            ]
        )

    def remapped(self, table: npt.NDArray[np.int32], own: int = 0) -> Remapped:
        columns = used_columns(table) or [own]
        parts = tuple(Read(c, self.catalogs[c].tensors[NAME]) for c in columns)
        return Remapped(
            source=own,
            name=NAME,
            dtype=promote({part.dtype for part in parts}),
            shape=(len(table), *parts[0].shape[1:]),
            reads=stored(parts),
            parts=parts,
            table=encode(table, {column: i for i, column in enumerate(columns)}),
        )

    def fill(self, one: Remapped, offset: int, nbytes: int) -> bytes:
        buffer = np.full(nbytes, 0xAB, np.uint8)
        filler = derived_filler(one, self.readers)
        filler.will_need(offset, nbytes)
        filler.fill(buffer, offset)
        return buffer.tobytes()

    def whole(self, one: Remapped) -> bytes:
        return self.fill(one, 0, one.dtype.num_bytes(one.shape))


def expected(table: npt.NDArray[np.int32], tensors: list[Tensor]) -> Tensor:
    """The table by its definition."""
    used = [tensors[c].dtype for c in range(len(tensors)) if (table[:, c] >= 0).any()]
    dtype = used[0]
    for other in used[1:]:
        dtype = torch.promote_types(dtype, other)
    rows: list[Tensor] = []
    for line in table:
        taken = [tensors[c][row].float() for c, row in enumerate(line) if row >= 0]
        total = torch.zeros(tensors[0].shape[1:])
        for row in taken:
            total = total + row if taken[0] is not row else row
        rows.append((total / len(taken) if len(taken) > 1 else total).to(dtype))
    padding = table[:, 0] == MEAN
    real = [row for row, padded in zip(rows, padding, strict=True) if not padded]
    mean = torch.stack(real).double().sum(0).div(len(real)).float().to(dtype)
    return torch.stack([mean if padded else row for row, padded in zip(rows, padding, strict=True)])


TABLE = np.array(
    [[0, _, _], [1, _, _], [_, 3, _], [_, 4, 1], [_, 5, 2], [_, _, _], [MEAN, _, _], [MEAN, _, _]],
    np.int32,
)
DTYPES = {
    "float32": (torch.float32,) * 3,
    "bfloat16": (torch.bfloat16,) * 3,
    "float16": (torch.float16,) * 3,
    "float64": (torch.float64, torch.float32, torch.bfloat16),
    "mixed": (torch.float16, torch.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("width", [1, 5, 64])
def test_the_whole_is_what_the_table_says(tmp_path: Path, dtypes: str, width: int) -> None:
    tensors = matrices(width, *DTYPES[dtypes])
    sources = Sources(tmp_path, tensors)

    assert sources.whole(sources.remapped(TABLE)) == raw(expected(TABLE, tensors))


def test_a_run_longer_than_a_chunk_is_averaged_as_any_other(tmp_path: Path) -> None:
    width = CHUNK_ELEMENTS // 2 + 3
    tensors = matrices(width, torch.bfloat16, torch.bfloat16)
    sources = Sources(tmp_path, tensors)
    table = np.array([[0, 1], [1, 2], [2, 3], [_, 4], [MEAN, _]], np.int32)

    assert sources.whole(sources.remapped(table)) == raw(expected(table, tensors))


def test_a_bias_has_rows_of_one_element(tmp_path: Path) -> None:
    tensors = [torch.arange(6.0), torch.arange(6.0) * 10]
    sources = Sources(tmp_path, tensors)
    table = np.array([[1, _], [3, 3], [_, 5], [_, _]], np.int32)

    filled = np.frombuffer(sources.whole(sources.remapped(table)), np.float32)
    assert filled.tolist() == [1, 16.5, 50, 0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("shared"), matrices(5, *(torch.bfloat16,) * 3))


rows = st.lists(
    st.one_of(
        st.tuples(*[st.sampled_from([_, 0, 1, 2, 3, 4, 5])] * 3),
        st.just((MEAN, _, _)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(rows, st.data())
def test_any_piece_is_what_the_whole_has_there(
    shared: Sources, lines: list[tuple[int, ...]], data: st.DataObject
) -> None:
    one = shared.remapped(np.array([(0, _, _), *lines], np.int32))
    whole = shared.whole(one)
    start = data.draw(st.integers(0, one.num_elements - 1))
    stop = data.draw(st.integers(start + 1, one.num_elements))
    assert shared.fill(one, 2 * start, 2 * (stop - start)) == whole[2 * start : 2 * stop]


def test_it_counts_what_it_reads(tmp_path: Path) -> None:
    sources = Sources(tmp_path, matrices(4, *(torch.float32,) * 3))
    plain = sources.remapped(TABLE[:6])
    read = derived_filler(plain, sources.readers).fill(np.empty(6 * 16, np.uint8), 0)

    # Two own rows, one of another source, twice an average of two.
    assert read == plain.read_bytes == 7 * 16
    assert sources.remapped(TABLE).read_bytes == 2 * 7 * 16
    assert plain.how == "rows by token: 2 its own, 1 of another source, 2 averaged, 1 zero"


def test_it_travels_as_runs_and_is_named_by_them(tmp_path: Path) -> None:
    sources = Sources(tmp_path, matrices(4, torch.float32))
    table = np.arange(6, dtype=np.int32)[::-1].reshape(-1, 1).copy()
    one, other = sources.remapped(table), sources.remapped(table[1:])

    assert pickle.loads(pickle.dumps(one)) == one
    assert len(one.table) == 6 * 16
    assert one.identity != other.identity
    assert sources.remapped(np.arange(6, dtype=np.int32).reshape(-1, 1)).table == bytes(
        np.array([0, 6, 0, 0], np.int32)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_elements_are_widened_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    values = torch.randn(4096) * torch.tensor([1e-6, 1.0, 60.0, 3000.0]).repeat(1024)
    kind = {torch.bfloat16: DType.BF16, torch.float16: DType.F16, torch.float32: DType.F32}[dtype]
    out = np.empty(values.to(dtype).nbytes, np.uint8)
    narrow(values.numpy(), kind, out)

    assert out.tobytes() == raw(values.to(dtype))
    assert widen(out, kind).tobytes() == raw(values.to(dtype).float())
    narrow(np.array([np.nan, -np.nan], np.float32), DType.BF16, out[:4])
    assert np.isnan(widen(out[:4], DType.BF16)).all()
