"""Every kernel as a few lines of torch: its definition, and what a CUDA device runs.

Same bytes as the numba loops, from operations that IEEE 754 defines alone: no `addcmul`, no
`add(alpha=)`, no `lerp`, no matrix product, no reduction whose order torch chooses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import HIGH_BINS, LANES, LOW_BINS
from raymerge.kernels.delta import (
    BITS,
    KEEP_BAND,
    KEEP_DRAWN,
    KEEP_LARGEST,
    KEEP_RANKED,
    KEY,
    LIMIT,
    MODE,
    UPPER,
)
from raymerge.kernels.delta_shared import DeltaTrials
from raymerge.kernels.groups import Groups, GroupSums
from raymerge.kernels.philox import MULTIPLIERS, ROUNDS, WEYL
from raymerge.kernels.reduce import REDUCTION_BLOCK, close_block
from raymerge.kernels.tile import (
    ALL_FINITE,
    Bytes,
    Counts,
    DeltaPass,
    Figure,
    Ranked,
    Selectors,
    Sums,
    Tile,
)
from raymerge.kernels.torch_groups import add_to_groups, spread
from raymerge.kernels.torch_ring import DeviceTile

MAGNITUDE = 0x7FFFFFFF
NANS = {DType.F16: 0x7E00, DType.BF16: 0x7FC0, DType.F32: 0x7FC00000}
"""The bits that every NaN of a result is written as."""
LOW_WORD = 0xFFFFFFFF
DTYPES = {
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}


class TorchKernels:
    """torch's kernels on one device.

    A tile of a ring is on the device already, and what is made of it goes the ring's way. Any other
    is copied there, and back, while the caller waits.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def gram(self, tile: Tile, *, relative: bool, sums: Sums) -> int:
        """See `Kernels.gram`."""
        inputs = self._widen(tile)
        add_in_order(sums, products(inputs, relative=relative), first=tile.first)
        return first_non_finite(inputs)

    def group_gram(self, tile: Tile, groups: Groups, *, relative: bool, sums: GroupSums) -> int:
        """See `Kernels.group_gram`."""
        inputs = self._widen(tile)
        add_to_groups(sums, products(inputs, relative=relative), groups, first=tile.first)
        return first_non_finite(inputs)

    def count_high(self, tile: Tile, counts: Counts) -> int:
        """See `Kernels.count_high`."""
        inputs = self._widen(tile)
        for i, values in enumerate(inputs[1:]):
            bins = magnitude_bits(values - inputs[0]) >> 16
            counts[i] += torch.bincount(bins, minlength=HIGH_BINS).cpu().numpy()
        return first_non_finite(inputs)

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> int:
        """See `Kernels.count_low`."""
        inputs = self._widen(tile)
        each = len(bins) // (len(inputs) - 1)
        for i, wanted in enumerate(bins):
            if wanted < 0:
                continue
            bits = magnitude_bits(inputs[1 + i // each] - inputs[0])
            inside = bits[bits >> 16 == wanted] & (LOW_BINS - 1)
            counts[i, :LOW_BINS] += torch.bincount(inside, minlength=LOW_BINS).cpu().numpy()
            counts[i, LOW_BINS] += int((bits >> 16 > wanted).sum())
        return first_non_finite(inputs)

    def norms(
        self, tile: Tile, selectors: Selectors, sums: Sums, ranked: Ranked | None = None
    ) -> None:
        """See `Kernels.norms`."""
        inputs = self._widen(tile)
        wholes = [values - inputs[0] for values in inputs[1:]]
        kept = kept_entries(wholes, selectors, ranked, first=tile.first)
        rows = [row for pair in zip(wholes, kept, strict=True) for row in pair]
        add_in_order(sums, torch.stack(rows).abs().double(), first=tile.first)

    def span(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """See `Kernels.span`."""
        inputs = self._widen(tile)
        vectors = [x - inputs[0] for x in inputs[1:]] if relative else inputs
        mix = torch.zeros_like(inputs[0])
        for vector, coefficient in zip(vectors, coefficients.tolist(), strict=True):
            mix = mix + vector * coefficient
        return self._narrow(tile, inputs, inputs[0] + mix if relative else mix, out, dtype)

    def group_span(
        self,
        tile: Tile,
        groups: Groups,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """See `Kernels.group_span`."""
        inputs = self._widen(tile)
        vectors = [x - inputs[0] for x in inputs[1:]] if relative else inputs
        mix = torch.zeros_like(inputs[0])
        factors = spread(coefficients, groups, first=tile.first, count=tile.count, like=mix)
        for vector, factor in zip(vectors, factors, strict=True):
            mix = mix + vector * factor
        return self._narrow(tile, inputs, inputs[0] + mix if relative else mix, out, dtype)

    def delta(self, tile: Tile, figures: DeltaPass, *, out: Bytes, dtype: DType) -> int:
        """See `Kernels.delta`."""
        base, *sources = inputs = self._widen(tile)
        wholes = [values - base for values in sources]
        kept = kept_entries(wholes, figures.selectors, figures.ranked, first=tile.first)
        deltas = [delta * share for delta, share in zip(kept, figures.shares.tolist(), strict=True)]
        votes = sum(deltas, torch.zeros_like(base))
        weights = figures.weights.tolist()
        if figures.elect:
            sign = torch.where(votes >= 0, 1.0, -1.0)
            agrees = [delta * sign > 0 for delta in deltas]
            mix, divisor = torch.zeros_like(base), torch.zeros_like(base)
            for delta, agree, weight in zip(deltas, agrees, weights, strict=True):
                mix = mix + torch.where(agree, delta, 0.0)
                divisor = divisor + torch.where(agree, weight, 0.0)
        else:
            mix = votes
            divisor = sum(weights, torch.zeros_like(base))
        if figures.normalize:
            mix = mix / torch.where(divisor != 0, divisor, 1.0)
        return self._narrow(tile, inputs, base + mix * float(figures.scale), out, dtype)

    def span_trials(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        outs: Sequence[Bytes],
        dtype: DType,
    ) -> list[int]:
        """See `Kernels.span_trials`."""
        return [
            self.span(tile, own, relative=relative, out=out, dtype=dtype)
            for own, out in zip(coefficients, outs, strict=True)
        ]

    def delta_trials(
        self, tile: Tile, trials: DeltaTrials, *, outs: Sequence[Bytes], dtype: DType
    ) -> list[int]:
        """See `Kernels.delta_trials`."""
        passes = zip(trials.passes, outs, strict=True)
        return [self.delta(tile, figures, out=out, dtype=dtype) for figures, out in passes]

    def reduce(self, name: str, tile: Tile, figures: Sequence[Figure]) -> int:
        """See `Kernels.reduce`."""
        from raymerge.kernels.torch_free import REDUCTIONS

        inputs = self._widen(tile)
        REDUCTIONS[name](inputs, tile.first, *figures)
        return first_non_finite(inputs)

    def apply(
        self, name: str, tile: Tile, figures: Sequence[Figure], *, out: Bytes, dtype: DType
    ) -> int:
        """See `Kernels.apply`."""
        from raymerge.kernels.torch_free import PASSES

        inputs = self._widen(tile)
        return self._narrow(tile, inputs, PASSES[name](inputs, tile.first, *figures), out, dtype)

    def _widen(self, tile: Tile) -> list[Tensor]:
        if isinstance(tile, DeviceTile):
            raw = tile.sent
        else:
            raw = [torch.from_numpy(buffer).to(self.device) for buffer in tile.buffers]
        return [
            held.view(DTYPES[dtype])[: tile.count].float()
            for held, dtype in zip(raw, tile.dtypes, strict=True)
        ]

    def _narrow(
        self, tile: Tile, inputs: list[Tensor], values: Tensor, out: Bytes, dtype: DType
    ) -> int:
        result = values.to(DTYPES[dtype])
        # One NaN for all: which one arithmetic makes differs from device to device.
        words = result.view(torch.int32 if dtype is DType.F32 else torch.int16)
        words[result.isnan()] = NANS[dtype]
        target = torch.from_numpy(out).view(DTYPES[dtype])[: values.numel()]
        if isinstance(tile, DeviceTile):
            tile.bring(result, target)
        else:
            target.copy_(result)
        return first_non_finite([*inputs, result])


def first_non_finite(tensors: Sequence[Tensor]) -> int:
    """Index of the first tensor with a NaN or an Inf, or `ALL_FINITE`."""
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).tolist()
    return ALL_FINITE if all(finite) else finite.index(False)


def products(inputs: list[Tensor], *, relative: bool) -> Tensor:
    """Exact float64 products of every pair of vectors, `(pairs, count)`."""
    vectors = [x - inputs[0] for x in inputs[1:]] if relative else inputs
    return torch.stack(
        [left.double() * right.double() for i, left in enumerate(vectors) for right in vectors[i:]]
    )


def magnitude_bits(values: Tensor) -> Tensor:
    """The bits of `|values|`, int64: they order as the magnitudes do."""
    return values.view(torch.int32).long() & MAGNITUDE


def kept_entries(
    deltas: Sequence[Tensor], selectors: Selectors, ranked: Ranked | None, *, first: int
) -> list[Tensor]:
    """The entries of each delta that stay, 0 elsewhere; updates what selectors carry."""
    kept = []
    for i, (delta, selector) in enumerate(zip(deltas, selectors, strict=True)):
        if selector[MODE] == KEEP_RANKED:
            assert ranked is not None, "a selector that draws by rank, and no ranks"
            kept.append(keep_ranked(delta, int(selector[KEY]), ranked, i, first=first))
        else:
            kept.append(keep_entries(delta, selector, first=first))
    return kept


def keep_ranked(delta: Tensor, key: int, ranked: Ranked, source: int, *, first: int) -> Tensor:
    """The entries of a tile of whole rows that are drawn by their rank, times their factors."""
    length = ranked.rows.length
    magnitudes = magnitude_bits(delta).view(-1, length, ranked.rows.stride)
    order = magnitudes.sort(dim=1, stable=True).indices
    steps = torch.arange(length, device=delta.device).view(1, -1, 1).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, steps).flatten()
    limits = torch.from_numpy(ranked.limits[source].astype(np.int64)).to(delta.device)
    factors = torch.from_numpy(ranked.factors[source]).to(delta.device)
    words = philox_words(key, first, delta.numel(), delta.device)
    return torch.where(words < limits[ranks], delta * factors[ranks], 0.0)


def keep_entries(delta: Tensor, selector: npt.NDArray[np.uint64], *, first: int) -> Tensor:
    """The entries of `delta` that stay, 0 elsewhere; updates what the selector carries."""
    if selector[MODE] == KEEP_DRAWN:
        words = philox_words(int(selector[KEY]), first, delta.numel(), delta.device)
        return torch.where(words < int(selector[LIMIT]), delta, 0.0)
    if selector[MODE] in (KEEP_LARGEST, KEEP_BAND):
        bits = magnitude_bits(delta)
        stays = bits > int(selector[BITS])
        stays |= kept_at_threshold(bits, selector[BITS : BITS + 4])
        if selector[MODE] == KEEP_BAND:
            stays &= bits <= int(selector[UPPER])
            at_upper = bits == int(selector[UPPER])
            stays &= ~at_upper | kept_at_threshold(bits, selector[UPPER : UPPER + 4])
        return torch.where(stays, delta, 0.0)
    return delta


def kept_at_threshold(bits: Tensor, figures: npt.NDArray[np.uint64]) -> Tensor:
    """Which entries at a threshold stay; `figures` are its bits, kept, tied and seen, updated."""
    limit, kept, tied, seen = map(int, figures)
    at_threshold = bits == limit
    if kept >= tied:
        return at_threshold
    # (j + 1) * kept // tied > j * kept // tied, with j * kept taken modulo tied.
    j = at_threshold.long().cumsum(0) - 1
    remainder = (seen + j * kept) % tied
    figures[3] = (seen + int(at_threshold.sum()) * kept) % tied
    return at_threshold & (remainder + kept >= tied)


def philox_words(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """Philox4x32-10 words of entries `[first, first + count)`, int64; `first` a multiple of 4."""
    counter = torch.arange(first // 4, (first + count + 3) // 4, device=device)
    a, b = counter & LOW_WORD, counter >> 32
    c, d = torch.zeros_like(a), torch.zeros_like(a)
    k, m = key & LOW_WORD, key >> 32
    for _ in range(ROUNDS):
        # 32 x 32 bits overflow int64's sign; the shifted word is masked back.
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            (q >> 32 & LOW_WORD) ^ b ^ k,
            q & LOW_WORD,
            (p >> 32 & LOW_WORD) ^ d ^ m,
            p & LOW_WORD,
        )
        k, m = (k + WEYL[0]) & LOW_WORD, (m + WEYL[1]) & LOW_WORD
    return torch.stack([a, b, c, d], dim=1).flatten()[:count]


def add_in_order(sums: Sums, terms: Tensor, *, first: int) -> None:
    """Add float64 `terms`, `(sums, count)`, to the state of `reduce.new_sums` in contract order.

    Whole blocks do not depend on each other until they are closed: they are added side by side.
    """
    count = terms.shape[1]
    begin = min(count, -first % REDUCTION_BLOCK)
    end = begin + (count - begin) // REDUCTION_BLOCK * REDUCTION_BLOCK
    _add_to_block(sums, terms[:, :begin])
    if begin and (first + begin) % REDUCTION_BLOCK == 0:
        close_block(sums)
    if end > begin:
        whole = terms[:, begin:end]
        blocks = whole.reshape(len(whole), -1, REDUCTION_BLOCK // LANES, LANES)
        lanes = torch.zeros_like(blocks[:, :, 0])
        for row in range(blocks.shape[2]):
            lanes += blocks[:, :, row]
        for block in lanes.cpu().numpy().swapaxes(0, 1):
            sums[:, :LANES] = block
            close_block(sums)
    _add_to_block(sums, terms[:, end:])


def _add_to_block(sums: Sums, terms: Tensor) -> None:
    """Add terms, the first of which belongs to lane 0, to the open block."""
    lanes = torch.from_numpy(sums[:, :LANES]).to(terms.device)
    for start in range(0, terms.shape[1], LANES):
        width = min(LANES, terms.shape[1] - start)
        lanes[:, :width] += terms[:, start : start + width]
    sums[:, :LANES] = lanes.cpu().numpy()
