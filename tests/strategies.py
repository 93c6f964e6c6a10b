"""What the tests feed to kernels and methods, and a method run without the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import HIGH_BINS, LANES, LOW_COLUMNS
from raymerge.kernels.delta import (
    BITS,
    KEEP_ALL,
    KEEP_DRAWN,
    KEEP_LARGEST,
    KEEP_RANKED,
    KEPT,
    KEY,
    LIMIT,
    MODE,
    SELECTOR_COLUMNS,
    TIED,
)
from raymerge.kernels.groups import Group, Groups, GroupSums
from raymerge.kernels.philox import draw_key, draw_limit
from raymerge.kernels.reduce import close_block, gram_matrix, new_sums, num_pairs
from raymerge.kernels.rows import rows_of, whole_rows
from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, kept_count, threshold
from raymerge.kernels.tile import (
    Bytes,
    Counts,
    DeltaPass,
    Kernels,
    Ranked,
    Selectors,
    Sums,
    Tile,
)
from raymerge.methods import Method, methods
from raymerge.methods.registry import Family, Over
from raymerge.methods.rules import (
    DeltaRule,
    KeepBand,
    KeepDrawn,
    KeepLargest,
    KeepRanked,
    Rescale,
)
from raymerge.runtime import figures
from raymerge.runtime.figures import by_rank, trimmed
from tests.oracles import Doubles, Floats, from_dtype, to_dtype

quick = settings(deadline=None, max_examples=60)
"""For properties of compiled kernels: the first call of each is slow, the others are not."""

MERGEABLE = (DType.BF16, DType.F16, DType.F32, DType.F64)
OUTPUTS = (DType.BF16, DType.F16, DType.F32)


# --- stored tensors ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """One flat tensor as a checkpoint holds it."""

    raw: Bytes
    dtype: DType

    @property
    def size(self) -> int:
        """Elements."""
        return self.raw.size * 8 // self.dtype.bits

    @property
    def values(self) -> Floats:
        """The elements, widened to float32."""
        return from_dtype(self.raw.tobytes(), self.dtype)


def stored(values: Any, dtype: DType = DType.F32) -> Stored:
    """Values as a checkpoint of `dtype` would hold them."""
    return Stored(
        np.frombuffer(bytearray(to_dtype(np.asarray(values, np.float32), dtype)), np.uint8), dtype
    )


def stored_doubles(values: Doubles) -> Stored:
    """A float64 tensor, with digits that float32 has to round."""
    return Stored(np.frombuffer(bytearray(values.astype("<f8").tobytes()), np.uint8), DType.F64)


def fine_tunes(
    sources: int, size: int, *, seed: int = 0, dtypes: Sequence[DType] = (DType.BF16,)
) -> list[Stored]:
    """A base and `sources` fine-tunes of it: weights of 0.02, task vectors of 0.0002.

    `dtypes` are dealt out in turn. In bfloat16 many deltas are 0 and many are tied.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.02, size)
    vectors = [base, *(base + rng.normal(0, 2e-4, size) for _ in range(sources))]
    kinds = [dtypes[i % len(dtypes)] for i in range(len(vectors))]
    return [
        stored_doubles(values) if kind is DType.F64 else stored(values, kind)
        for values, kind in zip(vectors, kinds, strict=True)
    ]


def cut(inputs: Sequence[Stored], step: int | None = None) -> Iterator[Tile]:
    """Tiles of `step` elements, a multiple of 256; without a step, one of everything."""
    size = inputs[0].size
    step = step or max(size, 1)
    for first in range(0, size, step):
        count = min(step, size - first)
        yield Tile(
            buffers=[
                source.raw[first * source.dtype.bits // 8 :][: count * source.dtype.bits // 8]
                for source in inputs
            ],
            dtypes=[source.dtype for source in inputs],
            first=first,
            count=count,
        )


# --- Hypothesis ----------------------------------------------------------------------------------

few_values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, 2.0**-24, 2.0**-140])
plain_floats = st.floats(-60_000, 60_000, width=32)


@st.composite
def float_arrays(draw: st.DrawFn, *, min_size: int = 1, max_size: int = 700) -> Floats:
    """Finite float32 arrays, many with runs of equal magnitudes, zeros or subnormals."""
    elements = draw(st.sampled_from([plain_floats, few_values, plain_floats | few_values]))
    size = draw(st.integers(min_size, max_size))
    return draw(hnp.arrays(np.float32, size, elements=elements))


@st.composite
def tensors(draw: st.DrawFn, *, min_inputs: int = 1, max_inputs: int = 4) -> list[Stored]:
    """Several tensors of one size, each of its own element type."""
    first = draw(float_arrays())
    others = draw(st.integers(min_inputs - 1, max_inputs - 1))
    values = [first]
    for _ in range(others):
        elements = draw(st.sampled_from([plain_floats, few_values]))
        values.append(draw(hnp.arrays(np.float32, first.size, elements=elements)))
    return [stored(array, draw(st.sampled_from(MERGEABLE))) for array in values]


densities = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 1e-9])
knob_values = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, -1.0, 0.3])


# --- one tensor through kernels ------------------------------------------------------------------


def run_span(
    kernels: Kernels,
    inputs: Sequence[Stored],
    coefficients: Sequence[float],
    *,
    relative: bool = False,
    dtype: DType = DType.F32,
    step: int | None = None,
) -> tuple[bytes, list[int]]:
    """The bytes of a span pass, and what each tile reported."""
    parts, reports = [], []
    for tile in cut(inputs, step):
        out = np.zeros(dtype.num_bytes([tile.count]), np.uint8)
        figures = np.array(coefficients, np.float32)
        reports.append(kernels.span(tile, figures, relative=relative, out=out, dtype=dtype))
        parts.append(out.tobytes())
    return b"".join(parts), reports


def run_group_span(
    groups: Groups,
    kernels: Kernels,
    inputs: Sequence[Stored],
    coefficients: npt.ArrayLike,
    *,
    relative: bool = False,
    dtype: DType = DType.F32,
    step: int | None = None,
) -> tuple[bytes, list[int]]:
    """The same with coefficients of every row or column: `(vectors, groups)`."""
    parts, reports = [], []
    figures = np.ascontiguousarray(coefficients, np.float32)
    for tile in cut(inputs, step):
        out = np.zeros(dtype.num_bytes([tile.count]), np.uint8)
        report = kernels.group_span(tile, groups, figures, relative=relative, out=out, dtype=dtype)
        reports.append(report)
        parts.append(out.tobytes())
    return b"".join(parts), reports


def run_delta(
    kernels: Kernels,
    inputs: Sequence[Stored],
    figures: DeltaPass,
    *,
    dtype: DType = DType.F32,
    step: int | None = None,
) -> tuple[bytes, list[int]]:
    """The bytes of a delta pass, and what each tile reported. Leaves `figures` as it was."""
    figures = DeltaPass(
        selectors=figures.selectors.copy(),
        shares=figures.shares,
        weights=figures.weights,
        elect=figures.elect,
        normalize=figures.normalize,
        scale=figures.scale,
        ranked=figures.ranked,
    )
    parts, reports = [], []
    for tile in cut(inputs, step):
        out = np.zeros(dtype.num_bytes([tile.count]), np.uint8)
        reports.append(kernels.delta(tile, figures, out=out, dtype=dtype))
        parts.append(out.tobytes())
    return b"".join(parts), reports


def delta_figures(
    selectors: Selectors,
    shares: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    elect: bool = False,
    normalize: bool = False,
    scale: float = 1.0,
    ranked: Ranked | None = None,
) -> DeltaPass:
    """Figures of a delta pass, rounded to float32 once."""
    return DeltaPass(
        selectors=selectors,
        shares=np.array(shares, np.float32),
        weights=np.array(shares if weights is None else weights, np.float32),
        elect=elect,
        normalize=normalize,
        scale=np.float32(scale),
        ranked=ranked,
    )


def keep_all(sources: int) -> Selectors:
    """Selectors under which every entry stays."""
    selectors = np.zeros((sources, SELECTOR_COLUMNS), np.uint64)
    selectors[:, MODE] = KEEP_ALL
    return selectors


def keep_largest(thresholds: Sequence[Threshold]) -> Selectors:
    """Selectors under which the largest entries of each source stay."""
    selectors = np.zeros((len(thresholds), SELECTOR_COLUMNS), np.uint64)
    selectors[:, MODE] = KEEP_LARGEST
    for row, limit in zip(selectors, thresholds, strict=True):
        row[BITS], row[KEPT], row[TIED] = limit.bits, limit.kept, limit.tied
    return selectors


def keep_drawn(densities: Sequence[float], keys: Sequence[int]) -> Selectors:
    """Selectors under which each source's entries stay with its probability."""
    selectors = np.zeros((len(keys), SELECTOR_COLUMNS), np.uint64)
    selectors[:, MODE] = KEEP_DRAWN
    for row, density, key in zip(selectors, densities, keys, strict=True):
        row[KEY], row[LIMIT] = key, draw_limit(density)
    return selectors


def find_thresholds(
    kernels: Kernels,
    inputs: Sequence[Stored],
    densities: Sequence[float],
    *,
    step: int | None = None,
) -> list[Threshold]:
    """Each source's threshold, in the two passes a merge makes."""
    sources = len(inputs) - 1
    high = np.zeros((sources, HIGH_BINS), np.int64)
    low = np.zeros((sources, LOW_COLUMNS), np.int64)
    for tile in cut(inputs, step):
        kernels.count_high(tile, high)
    keep = [kept_count(density, inputs[0].size) for density in densities]
    bins = [high_bin(counts, k) if k else -1 for counts, k in zip(high, keep, strict=True)]
    for tile in cut(inputs, step):
        kernels.count_low(tile, bins, low)
    found = [
        threshold(counts, bin_, k) if k else NOTHING
        for counts, bin_, k in zip(low, bins, keep, strict=True)
    ]
    exact = [limit for limit in found if limit is not None]
    assert len(exact) == sources, "a bin that was counted exactly holds no threshold"
    return exact


@dataclass(frozen=True, slots=True)
class SweptInputs:
    """Inputs in memory, sampled from their first tile alone."""

    kernels: Kernels
    inputs: Sequence[Stored]
    step: int | None
    elements: int

    def sweep(self) -> Iterator[Tile]:
        """See `Swept.sweep`."""
        return cut(self.inputs, self.step)

    def sample(self) -> Iterator[Tile]:
        """See `Swept.sample`."""
        return islice(cut(self.inputs, self.step), 1)

    def count_high(self, tiles: Iterable[Tile], counts: Counts) -> None:
        """See `Counting.count_high`."""
        for tile in tiles:
            self.kernels.count_high(tile, counts)

    def count_low(self, tiles: Iterable[Tile], bins: Sequence[int], counts: Counts) -> None:
        """See `Counting.count_low`."""
        for tile in tiles:
            self.kernels.count_low(tile, bins, counts)


def find_band(
    kernels: Kernels, inputs: Sequence[Stored], keep: KeepBand, *, step: int | None = None
) -> Selectors:
    """Selectors of a band of magnitudes, by thresholds found as in a merge."""
    swept = SweptInputs(kernels, inputs, step, inputs[0].size)
    return trimmed(keep, figures.find_thresholds(keep, swept, swept), swept.elements)


def find_gram(
    kernels: Kernels, inputs: Sequence[Stored], *, relative: bool = False, step: int | None = None
) -> Doubles:
    """The Gram matrix of the inputs or, relative, of the others minus the first."""
    vectors = len(inputs) - relative
    sums = new_sums(num_pairs(vectors))
    for tile in cut(inputs, step):
        kernels.gram(tile, relative=relative, sums=sums)
    return gram_matrix(sums, vectors)


def find_grams(
    kernels: Kernels,
    inputs: Sequence[Stored],
    groups: Groups,
    *,
    relative: bool = False,
    step: int | None = None,
) -> Doubles:
    """The Gram matrix of every row or column, `(groups, vectors, vectors)`."""
    vectors = len(inputs) - relative
    sums = GroupSums.new(groups, vectors)
    for tile in cut(inputs, step):
        kernels.group_gram(tile, groups, relative=relative, sums=sums)
    return sums.grams(vectors, 0, groups.count)


def find_norms(
    kernels: Kernels,
    inputs: Sequence[Stored],
    selectors: Selectors,
    *,
    step: int | None = None,
    ranked: Ranked | None = None,
) -> Sums:
    """L1 norm of each delta, whole and kept: `(sources, 2)`."""
    sources = len(inputs) - 1
    sums, carried = new_sums(2 * sources), selectors.copy()
    for tile in cut(inputs, step):
        kernels.norms(tile, carried, sums, ranked)
    close_block(sums)
    return sums[:, LANES].reshape(sources, 2)


# --- one tensor through a method -----------------------------------------------------------------


def merge(
    name: str,
    inputs: Sequence[Stored],
    *,
    kernels: Kernels,
    dtype: DType = DType.F32,
    step: int | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    tensor: str = "weight",
    shape: tuple[int, ...] | None = None,
    base: bool = False,
    **knobs: Any,
) -> bytes:
    """The bytes a method makes of one tensor; the base comes first where the method has one.

    A knob of one value per source is given as a sequence, or as the one value for all. `base` says
    that there is one for a method that needs none. Without a shape the tensor is a vector.
    """
    method = methods()[name]
    base = base or method.needs_base
    given = _spread(method, knobs, sources=len(inputs) - base)
    if method.family is Family.DELTA:
        rule: DeltaRule = method.function(**given)
        labels = labels or [f"source-{i}" for i in range(len(inputs) - 1)]
        keys = [draw_key(seed, label=label, tensor=tensor) for label in labels]
        ranked = None
        if isinstance(rule.keep, KeepRanked):
            rows = rows_of(shape or [inputs[0].size])
            ranked = by_rank(rule.keep, rule.rescale, rows)
            step = step and whole_rows(rows, step)
        figures = _delta_pass(kernels, inputs, rule, keys, step=step, ranked=ranked)
        result, reports = run_delta(kernels, inputs, figures, dtype=dtype, step=step)
    elif method.family is Family.FREE:
        from tests.sweeps import run_free

        free = method.function(**given)
        result, reports = run_free(kernels, inputs, free, shape=shape, dtype=dtype, step=step)
    else:
        relative = method.over.resolve(has_base=base) is Over.DELTAS
        defaults = {knob.name: knob.default for knob in method.knobs.values()}
        groups = Groups.of(method.group({**defaults, **given}), shape or (inputs[0].size,))
        if groups.kind is not Group.TENSOR:
            given["gram"] = find_grams(kernels, inputs, groups, relative=relative, step=step)
        elif method.needs_gram:
            given["gram"] = find_gram(kernels, inputs, relative=relative, step=step)
        run = partial(run_group_span, groups) if groups.kind is not Group.TENSOR else run_span
        coefficients = method.function(**given)
        result, reports = run(
            kernels, inputs, coefficients, relative=relative, dtype=dtype, step=step
        )
    assert set(reports) <= {-1}, reports
    return result


def _spread(method: Method, knobs: dict[str, Any], *, sources: int) -> dict[str, Any]:
    given = {}
    for argument, value in knobs.items():
        per_source = method.knobs[argument.rstrip("_")].per_source
        alone = per_source and not isinstance(value, Sequence)
        given[argument] = (value,) * sources if alone else value
    for knob in method.knobs.values():
        if knob.per_source and knob.name not in given:
            given[knob.name] = (knob.default,) * sources
    return given


def _delta_pass(
    kernels: Kernels,
    inputs: Sequence[Stored],
    rule: DeltaRule,
    keys: Sequence[int],
    *,
    step: int | None,
    ranked: Ranked | None,
) -> DeltaPass:
    match rule.keep:
        case KeepBand():
            selectors = find_band(kernels, inputs, rule.keep, step=step)
        case KeepRanked(density=density):
            selectors = keep_drawn(density, keys)
            selectors[[0 < value < 1 for value in density], MODE] = KEEP_RANKED
        case KeepLargest(density=density):
            selectors = keep_largest(find_thresholds(kernels, inputs, density, step=step))
        case KeepDrawn(density=density):
            selectors = keep_drawn(density, keys)
    rescaling = [1.0] * len(keys)
    if rule.rescale is Rescale.DENSITY and isinstance(rule.keep, KeepDrawn):
        rescaling = [1 / value if draw_limit(value) else 1.0 for value in rule.keep.density]
    elif rule.rescale is Rescale.L1:
        norms = find_norms(kernels, inputs, selectors, step=step, ranked=ranked).tolist()
        rescaling = [whole / kept if min(whole, kept) >= 1e-7 else 1.0 for whole, kept in norms]
    return delta_figures(
        selectors,
        [weight * factor for weight, factor in zip(rule.weight, rescaling, strict=True)],
        weights=rule.weight,
        elect=rule.elect,
        normalize=rule.normalize,
        scale=rule.scale,
        ranked=ranked,
    )
