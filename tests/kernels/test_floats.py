"""Raw bytes to float32 and back: every 16-bit pattern, every way to round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.floats import CODES, narrow, widen
from tests.oracles import Floats, from_dtype, to_dtype
from tests.strategies import Stored, quick, stored, stored_doubles

Words = npt.NDArray[np.uint32]
HALVES = {DType.BF16: torch.bfloat16, DType.F16: torch.float16}
ALL_HALVES = np.arange(2**16, dtype=np.uint16)


def widened(source: Stored, *, start: int = 0) -> tuple[Floats, bool]:
    out = np.full(source.size - start, 7, np.float32)
    found = widen(source.raw.ctypes.data, CODES[source.dtype], start, out.size, out)
    return out, bool(found)


def narrowed(values: Floats, dtype: DType) -> tuple[npt.NDArray[np.uint8], bool]:
    out = np.zeros(dtype.num_bytes([values.size]), np.uint8)
    found = narrow(values, values.size, out.ctypes.data, CODES[dtype], 0)
    return out, bool(found)


def halves(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    return raw.view(np.uint16)


def by_torch(values: Floats, dtype: DType) -> npt.NDArray[np.uint16]:
    cast = torch.from_numpy(values).to(HALVES[dtype])
    return cast.view(torch.int16).numpy().view(np.uint16)


def words_to_round() -> Words:
    """Every upper half with lower halves at, beside and far from the middle."""
    middles = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    upper = np.left_shift(ALL_HALVES.astype(np.uint32), 16, dtype=np.uint32)
    return np.bitwise_or(upper[:, None], middles, dtype=np.uint32).reshape(-1)


def half_words_to_round() -> Words:
    """Every float16, and what lies at and beside the middle between it and its neighbour."""
    exact = ALL_HALVES[:0x7C00].view(np.float16).astype(np.float32)
    above = np.append(exact[1:], np.float32(65536))
    middle = (exact + above) / np.float32(2)
    beside = [np.nextafter(middle, np.float32(side)) for side in (0, np.inf)]
    positive = np.concatenate([exact, middle, *beside]).astype(np.float32)
    return np.concatenate([positive, -positive]).view(np.uint32)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_every_16_bit_pattern_widens_as_torch_widens_it(dtype: DType) -> None:
    source = Stored(ALL_HALVES.view(np.uint8), dtype)
    expected = torch.from_numpy(ALL_HALVES.view(np.int16)).view(HALVES[dtype]).float().numpy()

    values, _ = widened(source)

    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(values), nan)
    assert np.array_equal(values[~nan].view(np.uint32), expected[~nan].view(np.uint32))


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_a_16_bit_pattern_is_reported_iff_it_is_not_finite(dtype: DType) -> None:
    for pattern in range(0, 2**16, 7):
        source = Stored(np.array([0, pattern], np.uint16).view(np.uint8), dtype)
        _, found = widened(source)
        assert found == (not np.isfinite(source.values).all()), hex(pattern)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -0.0, 1e-45])
def test_a_wide_value_is_reported_iff_it_is_not_finite(dtype: DType, value: float) -> None:
    values, found = widened(stored([1.0, value, 2.0], dtype))

    assert found == (not np.isfinite(value))
    assert values.tobytes() == np.array([1.0, value, 2.0], np.float32).tobytes()


@pytest.mark.parametrize(
    ("value", "word"),
    [
        pytest.param(1 + 2.0**-24, 0x3F800000, id="a tie goes to the even neighbour"),
        pytest.param(1 + 2.0**-24 + 2.0**-50, 0x3F800001, id="a hair above a tie goes up"),
        pytest.param(1e-46, 0x00000000, id="below the smallest subnormal is 0"),
        pytest.param(-1e-45, 0x80000001, id="subnormal"),
        pytest.param(1e300, 0x7F800000, id="beyond float32 is Inf, and reported"),
    ],
)
def test_a_float64_is_rounded_to_nearest_even(value: float, word: int) -> None:
    values, found = widened(stored_doubles(np.array([value])))

    assert int(values.view(np.uint32)[0]) == word
    assert found == (word == 0x7F800000)


@pytest.mark.parametrize("dtype", CODES)
def test_widening_starts_where_it_is_told(dtype: DType) -> None:
    values, _ = widened(stored(np.arange(10), dtype), start=3)

    assert values.tolist() == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        pytest.param(DType.BF16, words_to_round(), id="BF16, every middle"),
        pytest.param(DType.F16, words_to_round(), id="F16, every upper half"),
        pytest.param(DType.F16, half_words_to_round(), id="F16, every middle"),
    ],
)
def test_narrowing_rounds_as_torch_and_as_the_oracle(dtype: DType, words: Words) -> None:
    values = words.view(np.float32)
    finite = values[~np.isnan(values)]

    raw, _ = narrowed(finite, dtype)

    assert np.array_equal(halves(raw), by_torch(finite, dtype))
    assert raw.tobytes() == to_dtype(finite, dtype)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_a_nan_stays_a_nan_whatever_its_payload(dtype: DType) -> None:
    payloads = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)

    raw, found = narrowed(payloads.view(np.float32), dtype)

    assert np.isnan(from_dtype(raw.tobytes(), dtype)).all()
    assert found


LARGEST = {DType.BF16: 2.0**127 * (2 - 2.0**-7), DType.F16: 65504.0}
OVERFLOWS = {DType.BF16: 2.0**127 * (2 - 2.0**-8), DType.F16: 65520.0}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_a_finite_value_that_becomes_inf_is_reported(dtype: DType, sign: int) -> None:
    """The first value that overflows lies half a step above the largest finite one."""
    first = np.float32(OVERFLOWS[dtype])
    last = np.nextafter(first, np.float32(0))

    raw, found = narrowed(np.array([sign * last], np.float32), dtype)
    assert from_dtype(raw.tobytes(), dtype).tolist() == [sign * LARGEST[dtype]]
    assert not found

    raw, found = narrowed(np.array([0, sign * first, 0], np.float32), dtype)
    assert from_dtype(raw.tobytes(), dtype).tolist() == [0, sign * np.inf, 0]
    assert found


def test_float32_is_written_bit_by_bit() -> None:
    values = np.array([0.0, -0.0, 1e-45, 3.4e38, -1.5], np.float32)

    raw, found = narrowed(values, DType.F32)

    assert raw.tobytes() == values.tobytes()
    assert not found


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_narrowing_writes_its_elements_and_no_other(dtype: DType) -> None:
    width = dtype.bits // 8
    out = np.full(10 * width, 0xAB, np.uint8)

    narrow(np.ones(4, np.float32), 3, out.ctypes.data, CODES[dtype], 5)

    untouched = bytes([0xAB])
    assert out[: 5 * width].tobytes() == untouched * 5 * width
    assert out[5 * width : 8 * width].tobytes() == to_dtype(np.ones(3, np.float32), dtype)
    assert out[8 * width :].tobytes() == untouched * 2 * width


@quick
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_any_float32_is_narrowed_as_the_oracle_narrows_it(dtype: DType, words: list[int]) -> None:
    values = np.array(words, np.uint32).view(np.float32)
    finite = values[~np.isnan(values)]

    raw, found = narrowed(finite, dtype)

    assert raw.tobytes() == to_dtype(finite, dtype)
    assert found == (not np.isfinite(from_dtype(raw.tobytes(), dtype)).all())
