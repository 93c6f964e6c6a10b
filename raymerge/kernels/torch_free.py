"""The kernels of free methods as a few lines of torch each: their definition, and what CUDA runs.

A reduction adds a tile to its figures in place; a last pass returns the merged float32 values. Each
takes the widened inputs, the base first, and the flat index of the tile's first element.

Only operations that IEEE 754 defines to the last bit are used, exp and log included (see
`exponential.py`), so that every device gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, ROW_LANES
from raymerge.kernels.delta import KEEP_ALL, MODE
from raymerge.kernels.exponential import (
    EXP_TERMS,
    EXPONENT_BIAS,
    FAR_TERMS,
    HALF_OCTAVE,
    INVERSE_LN_2,
    LN_2_HIGH,
    LN_2_LOW,
    LOWEST,
    NEAR,
    NEAR_TERMS,
    ROUND_TO_WHOLE,
)
from raymerge.kernels.fusion import SMOOTHING
from raymerge.kernels.nearswap import SMALLEST_DISTANCE
from raymerge.kernels.tile import Counts, Selectors, Sums
from raymerge.kernels.torch_kernels import add_in_order, keep_entries, magnitude_bits

Factors = npt.NDArray[np.float32]


def nearswap(inputs: list[Tensor], _first: int, t: np.float32) -> Tensor:
    """`w x + (1 - w) b`, w = min(1, t / |b - x|)."""
    base, values = inputs
    distance = (base - values).abs().clamp(min=float(np.float32(SMALLEST_DISTANCE)))
    # A tensor over a tensor: torch takes a number over a tensor as that times a reciprocal.
    share = (torch.full_like(distance, float(t)) / distance).clamp(max=1.0)
    return share * values + (1.0 - share) * base


def ram_count(inputs: list[Tensor], _first: int, epsilon: np.float32, counts: Counts) -> None:
    """Entries of each source active in others too, and in it alone."""
    active = torch.stack(_active(inputs, epsilon))
    number = active.sum(0)
    counts[:, 0] += (active & (number > 1)).sum(1).cpu().numpy()
    counts[:, 1] += (active & (number == 1)).sum(1).cpu().numpy()


def ram(inputs: list[Tensor], _first: int, epsilon: np.float32, factors: Factors) -> Tensor:
    """The base plus the mean of the active deltas, or a lone one times its factor."""
    base, *sources = inputs
    total, alone, number = torch.zeros_like(base), torch.zeros_like(base), torch.zeros_like(base)
    active = _active(inputs, epsilon)
    for values, mask, factor in zip(sources, active, factors.tolist(), strict=True):
        delta = torch.where(mask, values - base, 0.0)
        total = total + delta
        alone = alone + delta * factor
        number = number + mask.float()
    return base + torch.where(number > 1, total / number, alone)


def _active(inputs: list[Tensor], epsilon: np.float32) -> list[Tensor]:
    base, *sources = inputs
    return [(values - base).abs() > float(epsilon) for values in sources]


def spread_high(inputs: list[Tensor], _first: int, counts: Counts) -> None:
    """Histogram of the upper bits of the spread."""
    _count_high(_spread(_deltas(inputs)), counts)


def spread_low(inputs: list[Tensor], _first: int, bins: npt.NDArray[np.int64], low: Counts) -> None:
    """Histogram of the lower bits of the spread, inside each bin."""
    _count_low(_spread(_deltas(inputs)), bins, low)


def sce_energies(inputs: list[Tensor], first: int, selectors: Selectors, sums: Sums) -> None:
    """Sum of squares of what is selected of each task vector."""
    kept = torch.stack(_selected(inputs, first, selectors)).double()
    add_in_order(sums, kept * kept, first=first)


def sce(inputs: list[Tensor], first: int, selectors: Selectors, weights: Factors) -> Tensor:
    """The base plus the weighted mean of the selected deltas of the elected sign."""
    base = inputs[0]
    deltas = _selected(inputs, first, selectors)
    sign = torch.where(sum(deltas, torch.zeros_like(base)) >= 0, 1.0, -1.0)
    mix, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, weights.tolist(), strict=True):
        agrees = delta * sign > 0
        mix = mix + torch.where(agrees, delta * weight, 0.0)
        divisor = divisor + torch.where(agrees, weight, 0.0)
    return base + mix / torch.where(divisor != 0, divisor, 1.0)


def _deltas(inputs: list[Tensor]) -> list[Tensor]:
    return [values - inputs[0] for values in inputs[1:]]


def _spread(deltas: list[Tensor]) -> Tensor:
    """n times the population variance of n task vectors, each taken from the first."""
    zeros = torch.zeros_like(deltas[0])
    apart = [delta - deltas[0] for delta in deltas]
    mean = sum(apart[1:], zeros) / torch.full_like(zeros, len(deltas))
    return sum(((each - mean) * (each - mean) for each in apart), zeros)


def _selected(inputs: list[Tensor], first: int, selectors: Selectors) -> list[Tensor]:
    deltas = _deltas(inputs)
    if selectors[0, MODE] == KEEP_ALL:
        return deltas
    stays = keep_entries(_spread(deltas), selectors[0], first=first) != 0
    return [torch.where(stays, delta, 0.0) for delta in deltas]


def fusion_peaks(inputs: list[Tensor], first: int, length: int, peaks: Sums) -> None:
    """Largest entry of each row of base and source."""
    rows = _rows(inputs[0], first, length)
    for i, values in enumerate(inputs):
        found = torch.from_numpy(peaks[:, i].copy()).to(values.device)
        peaks[:, i] = found.scatter_reduce(0, rows, values.double(), "amax").cpu().numpy()


def fusion_rows(
    inputs: list[Tensor],
    first: int,
    length: int,
    anchors: Sums,
    powers: Sums,
    divergences: Sums,
    largest: npt.NDArray[np.uint32],
) -> None:
    """The divergence of each row that ends in the tile; `powers` has what is known of the next."""
    found = _powers(inputs, first, length, anchors)
    position = first % length
    known = torch.from_numpy(powers[:, :position].copy()).to(found.device)
    found = torch.cat([known, found], dim=1)
    ended = found.shape[1] // length
    row = first // length
    whole = found[:, : ended * length].reshape(2, ended, length)
    divergences[row : row + ended] = _divergence(whole).cpu().numpy()
    rest = found[:, ended * length :]
    powers[:, : rest.shape[1]] = rest.cpu().numpy()
    largest[0] = max(int(largest[0]), _largest_magnitude(inputs))


def fusion_sums(
    inputs: list[Tensor],
    first: int,
    length: int,
    anchors: Sums,
    lanes: Sums,
    sums: Sums,
    largest: npt.NDArray[np.uint32],
) -> None:
    """The sums of exp over each long row that ends in the tile."""
    powers = _powers(inputs, first, length, anchors)
    for row, total in _ended_rows(powers, first, length, lanes):
        sums[row] = total.cpu().numpy()
    largest[0] = max(int(largest[0]), _largest_magnitude(inputs))


def fusion_divergence(
    inputs: list[Tensor],
    first: int,
    length: int,
    anchors: Sums,
    sums: Sums,
    lanes: Sums,
    divergences: Sums,
) -> None:
    """The divergence of each long row that ends in the tile."""
    rows = _rows(inputs[0], first, length)
    powers = _powers(inputs, first, length, anchors)
    q, p = (each * _of_rows(1.0 / sums[:, i], rows) + SMOOTHING for i, each in enumerate(powers))
    for row, total in _ended_rows(p * log_ratio(p, q), first, length, lanes):
        divergences[row] = float(total)


def importance_high(
    inputs: list[Tensor], first: int, length: int, factors: Factors, counts: Counts
) -> None:
    """Histogram of the upper bits of the importance."""
    _count_high(_importance(inputs, first, length, factors), counts)


def importance_low(
    inputs: list[Tensor],
    first: int,
    length: int,
    factors: Factors,
    bins: npt.NDArray[np.int64],
    low: Counts,
) -> None:
    """Histogram of the lower bits of the importance, inside each bin."""
    _count_low(_importance(inputs, first, length, factors), bins, low)


def fusion(
    inputs: list[Tensor], first: int, length: int, factors: Factors, threshold: np.float32
) -> Tensor:
    """The base, plus the delta where its importance reaches the threshold."""
    base, values = inputs
    taken = _importance(inputs, first, length, factors) >= float(threshold)
    return base + torch.where(taken, values - base, 0.0)


def _importance(inputs: list[Tensor], first: int, length: int, factors: Factors) -> Tensor:
    base, values = inputs
    return (values - base).abs() * _of_rows(factors, _rows(base, first, length))


def _rows(values: Tensor, first: int, length: int) -> Tensor:
    """The row of each entry of a tile."""
    return (first + torch.arange(values.numel(), device=values.device)) // length


def _of_rows(figures: npt.NDArray[Any], rows: Tensor) -> Tensor:
    """Each entry's own among the figures of all rows."""
    return torch.from_numpy(np.ascontiguousarray(figures)).to(rows.device)[rows]


def _divergence(powers: Tensor) -> Tensor:
    """Sum of `p log(p / q)` of whole rows, from exp of base and source, `(2, rows, length)`."""
    shares = powers * (1.0 / _sum_rows(powers))[..., None] + SMOOTHING
    q, p = shares
    return _sum_rows(p * log_ratio(p, q))


def _powers(inputs: list[Tensor], first: int, length: int, anchors: Sums) -> Tensor:
    """exp of base and source, each entry less its row's anchor, `(2, count)`."""
    rows = _rows(inputs[0], first, length)
    anchored = [values.double() - _of_rows(anchors[:, i], rows) for i, values in enumerate(inputs)]
    return exponential(torch.stack(anchored))


def _largest_magnitude(inputs: list[Tensor]) -> int:
    return max(int(magnitude_bits(values).max()) for values in inputs)


def _sum_rows(terms: Tensor) -> Tensor:
    """Sums over the last dimension."""
    return _fold(_add_to_lanes(terms.new_zeros((*terms.shape[:-1], ROW_LANES)), terms, 0))


def _ended_rows(
    terms: Tensor, first: int, length: int, lanes: Sums
) -> Iterator[tuple[int, Tensor]]:
    """Each row that ends in a tile, and its sum; `lanes` has what is known of the next."""
    count = terms.shape[-1]
    begin = 0
    while begin < count:
        row, position = divmod(first + begin, length)
        end = min(count, begin + length - position)
        carried = torch.from_numpy(lanes.copy()).to(terms.device)
        carried = _add_to_lanes(carried, terms[..., begin:end], position)
        ended = position + end - begin == length
        if ended:
            yield row, _fold(carried)
        lanes[:] = 0.0 if ended else carried.cpu().numpy()
        begin = end


def _add_to_lanes(lanes: Tensor, terms: Tensor, position: int) -> Tensor:
    """Add entry j of a row to lane j mod 32, in rising order; the first term's j is `position`."""
    # What is padded adds 0, which changes no lane: none is -0.
    end = position + terms.shape[-1]
    aligned = pad(terms, (position % ROW_LANES, -end % ROW_LANES))
    for strip in torch.split(aligned, ROW_LANES, dim=-1):
        lanes = lanes + strip
    return lanes


def _fold(lanes: Tensor) -> Tensor:
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(u: Tensor) -> Tensor:
    """`exp u` of float64 up to 700."""
    u = u.clamp(min=LOWEST)
    shifted = u * INVERSE_LN_2 + ROUND_TO_WHOLE
    k = shifted - ROUND_TO_WHOLE
    power = _horner(EXP_TERMS, (u - k * LN_2_HIGH) - k * LN_2_LOW)
    return power * ((shifted.view(torch.int64) + EXPONENT_BIAS) << 52).view(torch.float64)


def log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """`log(p / q)` of positive float64."""
    s = (p - q) / (p + q)
    near = (s + s) * _horner(NEAR_TERMS, s * s)
    ratio = (p / q).view(torch.int64)
    k = (ratio - HALF_OCTAVE) >> 52
    m = (ratio - (k << 52)).view(torch.float64)
    part = (m - 1.0) / (m + 1.0)
    octaves = k.double()
    series = _horner(FAR_TERMS, part * part)
    far = octaves * LN_2_HIGH + ((part + part) * series + octaves * LN_2_LOW)
    return torch.where(s.abs() > NEAR, far, near)


def _horner(terms: Sequence[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, terms[0])
    for term in terms[1:]:
        total = total * x + term
    return total


def _count_high(values: Tensor, counts: Counts) -> None:
    bins = magnitude_bits(values) >> 16
    counts[0] += torch.bincount(bins, minlength=HIGH_BINS).cpu().numpy()


def _count_low(values: Tensor, bins: npt.NDArray[np.int64], counts: Counts) -> None:
    bits = magnitude_bits(values)
    for row, wanted in zip(counts, bins.tolist(), strict=True):
        if wanted >= 0:
            inside = bits[bits >> 16 == wanted] & (LOW_BINS - 1)
            row[:LOW_BINS] += torch.bincount(inside, minlength=LOW_BINS).cpu().numpy()
            row[LOW_BINS] += int((bits >> 16 > wanted).sum())


REDUCTIONS: dict[str, Callable[..., None]] = {
    "ram.count": ram_count,
    "sce.energies": sce_energies,
    "spread.high": spread_high,
    "spread.low": spread_low,
    "fusion.peaks": fusion_peaks,
    "fusion.rows": fusion_rows,
    "fusion.sums": fusion_sums,
    "fusion.divergence": fusion_divergence,
    "importance.high": importance_high,
    "importance.low": importance_low,
}
PASSES: dict[str, Callable[..., Tensor]] = {
    "nearswap": nearswap,
    "ram": ram,
    "sce": sce,
    "fusion": fusion,
}
