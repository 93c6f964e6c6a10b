"""Arcee fusion in torch, with exp and log of its own, and the histograms of free methods.

See `torch_free.py` for what the functions are given, `exponential.py` for exp and log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, ROW_LANES
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
from raymerge.kernels.tile import Counts, Sums
from raymerge.kernels.torch_kernels import magnitude_bits

Factors = npt.NDArray[np.float32]


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
    count_high(_importance(inputs, first, length, factors), counts)


def importance_low(
    inputs: list[Tensor],
    first: int,
    length: int,
    factors: Factors,
    bins: npt.NDArray[np.int64],
    low: Counts,
) -> None:
    """Histogram of the lower bits of the importance, inside each bin."""
    count_low(_importance(inputs, first, length, factors), bins, low)


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


def count_high(values: Tensor, counts: Counts) -> None:
    """Add the upper magnitude bits of one kind of values to `counts`, `(1, HIGH_BINS)`."""
    bins = magnitude_bits(values) >> 16
    counts[0] += torch.bincount(bins, minlength=HIGH_BINS).cpu().numpy()


def count_low(values: Tensor, bins: npt.NDArray[np.int64], counts: Counts) -> None:
    """Add the lower bits inside each bin, and what lies above it, to `counts`."""
    bits = magnitude_bits(values)
    for row, wanted in zip(counts, bins.tolist(), strict=True):
        if wanted >= 0:
            inside = bits[bits >> 16 == wanted] & (LOW_BINS - 1)
            row[:LOW_BINS] += torch.bincount(inside, minlength=LOW_BINS).cpu().numpy()
            row[LOW_BINS] += int((bits >> 16 > wanted).sum())
