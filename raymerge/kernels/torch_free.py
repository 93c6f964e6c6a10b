"""The kernels of free methods as a few lines of torch each: their definition, and what CUDA runs.

A reduction adds a tile to its figures in place; a last pass returns the merged float32 values. Each
takes the widened inputs, the base first, and the flat index of the tile's first element.

Only operations that IEEE 754 defines to the last bit are used, exp and log included (see
`exponential.py`), so that every device gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymerge.kernels.delta import KEEP_ALL, MODE
from raymerge.kernels.nearswap import SMALLEST_DISTANCE
from raymerge.kernels.tile import Counts, Selectors, Sums
from raymerge.kernels.torch_fusion import (
    count_high,
    count_low,
    fusion,
    fusion_divergence,
    fusion_peaks,
    fusion_rows,
    fusion_sums,
    importance_high,
    importance_low,
)
from raymerge.kernels.torch_kernels import add_in_order, keep_entries

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
    count_high(_spread(_deltas(inputs)), counts)


def spread_low(inputs: list[Tensor], _first: int, bins: npt.NDArray[np.int64], low: Counts) -> None:
    """Histogram of the lower bits of the spread, inside each bin."""
    count_low(_spread(_deltas(inputs)), bins, low)


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
