"""The fused pass of several merges gives what each one's own pass gives, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.delta_shared import delta_trials
from raymerge.kernels.philox import draw_key
from raymerge.kernels.rows import rows_of
from raymerge.kernels.tile import DeltaPass, Kernels, Ranked, Selectors
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.rules import KeepBand, KeepRanked, Rescale
from raymerge.runtime.figures import by_rank, drawn_by_rank
from tests.strategies import (
    MERGEABLE,
    OUTPUTS,
    Stored,
    cut,
    delta_figures,
    find_band,
    find_thresholds,
    fine_tunes,
    keep_all,
    keep_drawn,
    keep_largest,
    knob_values,
    quick,
    run_delta,
)

NUMBA = CpuKernels()
KERNELS = pytest.mark.parametrize("kernels", [NUMBA, TorchKernels("cpu")], ids=["numba", "torch"])
SOURCES = 3
ROW = 64
"""Entries of a row; tiles are whole rows of it."""
DENSITIES = (0.2, 0.7)
KEPT = ("all", "largest", "drawn", "band", "ranked")


def kept(inputs: Sequence[Stored], kind: str, density: float) -> tuple[Selectors, Ranked | None]:
    """Selectors of one kind, as a merge finds them."""
    each = (density,) * SOURCES
    labels = [str(source) for source in range(SOURCES)]
    if kind == "all":
        return keep_all(SOURCES), None
    if kind == "largest":
        return keep_largest(find_thresholds(NUMBA, inputs, each)), None
    if kind == "drawn":
        return keep_drawn(each, [draw_key(7, label=one, tensor="t") for one in labels]), None
    if kind == "band":
        return find_band(NUMBA, inputs, KeepBand(density=each, gamma=(0.1,) * SOURCES)), None
    keep = KeepRanked(density=each, epsilon=(0.1,) * SOURCES)
    rows = rows_of((inputs[0].size // ROW, ROW))
    ranked = by_rank(keep, Rescale.DENSITY if density > 0.5 else Rescale.NONE, rows)
    return drawn_by_rank(keep, seed=7, labels=labels, tensor="t"), ranked


@st.composite
def merges(draw: st.DrawFn, inputs: Sequence[Stored]) -> list[DeltaPass]:
    """Passes of which some have selectors, weights or more in common."""
    found = []
    few = st.lists(knob_values, min_size=SOURCES, max_size=SOURCES)
    known = draw(st.lists(few, min_size=1, max_size=2))
    for _ in range(draw(st.integers(1, 6))):
        kind, density = draw(st.sampled_from(KEPT)), draw(st.sampled_from(DENSITIES))
        selectors, ranked = kept(inputs, kind, density)
        found.append(
            delta_figures(
                selectors,
                draw(st.sampled_from(known)),
                weights=draw(st.sampled_from(known)),
                elect=draw(st.booleans()),
                normalize=draw(st.booleans()),
                scale=draw(st.sampled_from([1.0, 0.5, -2.0, 3e38])),
                ranked=ranked,
            )
        )
    return found


def run_together(
    kernels: Kernels,
    inputs: Sequence[Stored],
    passes: Sequence[DeltaPass],
    *,
    dtype: DType,
    step: int | None = None,
) -> list[tuple[bytes, list[int]]]:
    """What `run_delta` gives, of each pass."""
    shared = delta_trials(passes)
    parts: list[bytes] = [b""] * len(passes)
    reports: list[list[int]] = [[] for _ in passes]
    for tile in cut(inputs, step):
        outs = [np.zeros(dtype.num_bytes([tile.count]), np.uint8) for _ in passes]
        found = kernels.delta_trials(tile, shared, outs=outs, dtype=dtype)
        for position, (out, report) in enumerate(zip(outs, found, strict=True)):
            parts[position] += out.tobytes()
            reports[position].append(report)
    return list(zip(parts, reports, strict=True))


@KERNELS
@quick
@given(
    inputs=st.builds(
        fine_tunes,
        st.just(SOURCES),
        st.integers(1, 150).map(lambda rows: rows * ROW),
        seed=st.integers(0, 9),
        dtypes=st.lists(st.sampled_from(MERGEABLE), min_size=4, max_size=4),
    ),
    dtype=st.sampled_from(OUTPUTS),
    step=st.sampled_from([None, 256, 2304, 4096]),
    choose=st.data(),
)
def test_each_output_and_report_is_that_of_its_own_pass(
    kernels: Kernels,
    inputs: list[Stored],
    dtype: DType,
    step: int | None,
    choose: st.DataObject,
) -> None:
    """Also where an entry of some inputs is NaN, or a result leaves the range of its type."""
    passes = choose.draw(merges(inputs))
    places = st.tuples(st.integers(0, SOURCES), st.integers(0, inputs[0].size - 1))
    for source, place in choose.draw(st.lists(places, max_size=2)):
        width = inputs[source].dtype.bits // 8
        inputs[source].raw[place * width : (place + 1) * width] = 0xFF
    with np.errstate(invalid="ignore", over="ignore"):
        expected = [run_delta(kernels, inputs, one, dtype=dtype, step=step) for one in passes]
        found = run_together(kernels, inputs, passes, dtype=dtype, step=step)

    assert [reports for _, reports in found] == [reports for _, reports in expected]
    assert [raw for raw, _ in found] == [raw for raw, _ in expected]


def test_what_merges_have_in_common_is_worked_out_once() -> None:
    inputs = fine_tunes(2, 5000)
    sparse, dense = (
        keep_largest(find_thresholds(NUMBA, inputs, [density] * 2)) for density in (0.2, 0.6)
    )
    shared = delta_trials(
        [
            delta_figures(sparse, [1.0, 0.5], elect=True),
            delta_figures(dense, [1.0, 0.5], elect=True),
            delta_figures(sparse, [1.0, 0.5], elect=True, scale=0.3),
            delta_figures(sparse, [1.0, 0.25], elect=True),
            delta_figures(sparse, [1.0, 0.25], elect=True, normalize=True),
        ]
    )

    assert shared.sources.tolist() == [1, 1, 2, 2]
    assert shared.rows.tolist() == [[0, 2], [1, 3], [0, 2], [0, 2]]
    assert shared.order == (0, 2, 1, 3, 4)
    assert shared.mixes.tolist() == [0, 0, 1, 2, 3]


def test_the_passes_are_left_as_they_were() -> None:
    inputs = fine_tunes(3, 9000)
    selectors = keep_largest(find_thresholds(NUMBA, inputs, [0.2] * 3))
    before = selectors.copy()
    run_together(NUMBA, inputs, [delta_figures(selectors, [1.0] * 3)] * 2, dtype=DType.BF16)

    assert (selectors == before).all()
