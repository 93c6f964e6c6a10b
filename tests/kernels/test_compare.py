"""The counters of an inspection against plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.compare import BOTH, LARGE, OPPOSITE, UNCHANGED, Comparison, pairs_of
from raymerge.kernels.tile import Tile

Floats = npt.NDArray[np.float32]


def tile(inputs: list[Floats], first: int, count: int) -> Tile:
    buffers = [one[first : first + count].view(np.uint8) for one in inputs]
    return Tile(buffers, [DType.F32] * len(inputs), first, count)


def compared(inputs: list[Floats], *, relative: bool, tile_elements: int) -> Comparison:
    found = Comparison.new(len(inputs), relative=relative)
    for first in range(0, inputs[0].size, tile_elements):
        count = min(tile_elements, inputs[0].size - first)
        assert found.add(tile(inputs, first, count)) == -1
    return found


def sources(number: int, size: int) -> list[Floats]:
    """A base and fine-tunes that leave entries as they are and move some far, some hardly."""
    draw = np.random.default_rng(number)
    base = draw.normal(0, 0.02, size).astype(np.float32)
    moved = [draw.normal(0, 0.02, size) * draw.integers(0, 2, size) for _ in range(number)]
    return [base, *((base + move).astype(np.float32) for move in moved)]


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 255, 5000, 2**20 + 300])
def test_every_counter_is_numpy_s(number: int, size: int) -> None:
    inputs = sources(number, size)
    deltas = [one - inputs[0] for one in inputs[1:]]
    found = compared(inputs, relative=True, tile_elements=2**18)
    gram, base_square = found.gram()

    wide = np.array(deltas, np.float64)
    np.testing.assert_allclose(gram, wide @ wide.T, rtol=1e-12, atol=1e-15)
    assert base_square == pytest.approx(float(np.square(inputs[0].astype(np.float64)).sum()))
    assert found.entries[:, UNCHANGED].tolist() == [int((d == 0).sum()) for d in deltas]
    assert found.entries[:, LARGE].tolist() == [int((abs(d) > 0.03).sum()) for d in deltas]
    assert found.largest.tolist() == [abs(d).max() for d in deltas]
    for row, (i, j) in enumerate(pairs_of(range(number))):
        a, b = deltas[i], deltas[j]
        assert found.pairs[row, BOTH] == ((a != 0) & (b != 0)).sum()
        assert found.pairs[row, OPPOSITE] == (np.sign(a) * np.sign(b) < 0).sum()


def test_tiles_change_no_digit() -> None:
    inputs = sources(3, 2**20 + 5000)
    whole = compared(inputs, relative=True, tile_elements=2**21)
    tiled = compared(inputs, relative=True, tile_elements=1280)

    assert whole.gram()[0].tobytes() == tiled.gram()[0].tobytes()
    assert whole.gram()[1] == tiled.gram()[1]
    for name in ("entries", "pairs", "largest"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(tiled, name))


def test_without_a_base_the_inputs_are_the_vectors() -> None:
    inputs = sources(2, 3000)
    gram, _ = compared(inputs, relative=False, tile_elements=512).gram()

    wide = np.array(inputs, np.float64)
    np.testing.assert_allclose(gram, wide @ wide.T, rtol=1e-12)


def test_signs_differ_however_small_the_deltas_are() -> None:
    """Their product is 0 in float32."""
    tiny = np.array([1e-30, 1e-30, 0.0, 1e-45], np.float32)
    found = compared(
        [np.zeros_like(tiny), tiny, np.array([-1e-30, 1e-30, -1.0, -1e-45], np.float32)],
        relative=True,
        tile_elements=256,
    )

    assert found.pairs.tolist() == [[3, 2]]


def test_equal_vectors_are_at_no_distance() -> None:
    base, one = sources(1, 70_001)
    gram, _ = compared([base, one, one], relative=True, tile_elements=2**18).gram()

    assert gram[0, 0] + gram[1, 1] - 2 * gram[0, 1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_told_by_its_input(value: float) -> None:
    inputs = sources(2, 3000)
    inputs[2][2999] = value

    assert Comparison.new(3, relative=True).add(tile(inputs, 0, 3000)) == 2
