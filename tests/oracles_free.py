# ruff: noqa: ARG001 - oracles of one form, whatever each needs
"""The free methods, written slowly: float32 decisions in recipe order, float64 reductions.

As in `oracles.py` nothing here comes from `raymerge.kernels` or `raymerge.methods`. exp and log are
spelled out, since the contract is about their bits; `tests/kernels/test_exponential.py` compares
them with the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles import Doubles, Floats, Mask, inner, kept_largest

ONE = np.float32(1)
Shape = tuple[int, ...]


def oracle_nearswap(base: Floats, sources: Sequence[Floats], *, t: float, shape: Shape) -> Floats:
    """`w x + (1 - w) b`, w = min(1, t / |b - x|)."""
    source = sources[0]
    distance = np.maximum(np.abs(base - source), np.float32(1e-6))
    share: Floats = np.minimum(np.float32(t) / distance, ONE)
    mixed: Floats = share * source + (ONE - share) * base
    return mixed


def oracle_ram(
    base: Floats,
    sources: Sequence[Floats],
    *,
    shape: Shape,
    epsilon: float = 1e-5,
    r: float = 0,
    alpha: float = 0.2,
) -> Floats:
    """The mean of the active deltas; lone ones scaled by RAM+'s r and alpha."""
    deltas = [source - base for source in sources]
    active = [np.abs(delta) > np.float32(epsilon) for delta in deltas]
    number = np.sum(active, axis=0)
    total, alone = np.zeros_like(base), np.zeros_like(base)
    for delta, mask in zip(deltas, active, strict=True):
        unique, shared = int((mask & (number == 1)).sum()), int((mask & (number > 1)).sum())
        # Without lone entries there is nothing to scale.
        ratio = shared / max(unique, epsilon) if unique else 0
        factor = np.float32(1 + r * min(ratio, alpha))
        kept: Floats = np.where(mask, delta, np.float32(0))
        total = total + kept
        alone = alone + kept * factor
    mean = total / np.maximum(number, 1).astype(np.float32)
    merged: Floats = base + np.where(number > 1, mean, alone)
    return merged


def spread(deltas: Sequence[Floats]) -> Floats:
    """n times the population variance of n task vectors, each taken from the first."""
    apart = [delta - deltas[0] for delta in deltas]
    mean = np.zeros_like(deltas[0])
    for each in apart[1:]:
        mean = mean + each
    mean = mean / np.float32(len(deltas))
    total: Floats = np.zeros_like(deltas[0])
    for each in apart:
        total = total + (each - mean) * (each - mean)
    return total


def kept_spread(values: Floats, share: float) -> Mask:
    """The `int(share * n)` largest of the n spreads that are not 0, ties evenly spread."""
    if share >= 1:
        return np.ones(values.shape, np.bool_)
    rank = int(share * np.count_nonzero(values))
    if not rank:
        return np.zeros(values.shape, np.bool_)
    # A density that floors to the rank.
    mask = kept_largest(values, (rank + 0.5) / values.size)
    assert mask.sum() == rank
    return mask.reshape(values.shape)


def oracle_sce(
    base: Floats, sources: Sequence[Floats], *, shape: Shape, select_topk: float = 1.0
) -> Floats:
    """Select by variance, weigh by energy, erase the minority."""
    deltas = [source - base for source in sources]
    mask = kept_spread(spread(deltas), select_topk)
    deltas = [np.where(mask, delta, np.float32(0)) for delta in deltas]
    energies = [inner(delta, delta) for delta in deltas]
    total = float(np.sum(energies))
    shares = [energy / total if total else 1 / len(energies) for energy in energies]
    votes = np.zeros_like(base)
    for delta in deltas:
        votes = votes + delta
    sign = np.where(votes >= 0, ONE, -ONE)
    mix, divisor = np.zeros_like(base), np.zeros_like(base)
    for delta, share in zip(deltas, shares, strict=True):
        agrees = np.sign(delta) == sign
        mix = mix + np.where(agrees, delta * np.float32(share), np.float32(0))
        divisor = divisor + agrees * np.float32(share)
    divisor[divisor == 0] = 1
    merged: Floats = base + mix / divisor
    return merged


# --- arcee_fusion --------------------------------------------------------------------------------


def contract_exp(u: Doubles) -> Doubles:
    """exp as the contract spells it: 2^k times a Taylor polynomial of degree 12."""
    u = np.maximum(u, -700.0)
    k = np.round(u * 1.4426950408889634)
    r = (u - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    total = np.full_like(u, 1 / math.factorial(12))
    for n in range(11, -1, -1):
        total = total * r + 1 / math.factorial(n)
    return np.ldexp(total, k.astype(np.int64))


def contract_log_ratio(p: Doubles, q: Doubles) -> Doubles:
    """log(p / q) as the contract spells it: a series in (p - q) / (p + q)."""
    s = (p - q) / (p + q)
    near = (s + s) * _odd_series(s, 6)
    ratio = p / q
    m, k = np.frexp(ratio)
    # From the root of 1/2 up to that of 2.
    low = m < math.sqrt(0.5)
    m, k = np.where(low, 2 * m, m), k - low
    part = (m - 1) / (m + 1)
    far = k * 0.6931471803691238 + (
        (part + part) * _odd_series(part, 10) + k * 1.9082149292705877e-10
    )
    return np.where(np.abs(s) > 0.0625, far, near)


def _odd_series(s: Doubles, terms: int) -> Doubles:
    square = s * s
    total = np.full_like(s, 1 / (2 * terms + 1))
    for n in range(terms - 1, -1, -1):
        total = total * square + 1 / (2 * n + 1)
    return total


def row_sums(terms: Doubles) -> Doubles:
    """Sums over the last dimension: entry j into lane j mod 32 in rising order, lanes halved."""
    padded = np.zeros((len(terms), -(-terms.shape[1] // 32) * 32))
    padded[:, : terms.shape[1]] = terms
    lanes = np.zeros((len(terms), 32))
    for start in range(0, padded.shape[1], 32):
        lanes = lanes + padded[:, start : start + 32]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def divergences(base: Floats, source: Floats) -> Floats:
    """Of each row, that of the source's softmax from the base's, rounded to float32 once."""
    shares = []
    for values in (base, source):
        powers = contract_exp(values.astype(np.float64))
        shares.append(powers * (1 / row_sums(powers))[:, None] + 1e-8)
    q, p = shares
    return np.maximum(row_sums(p * contract_log_ratio(p, q)), 0).astype(np.float32)


def oracle_arcee_fusion(base: Floats, sources: Sequence[Floats], *, shape: Shape) -> Floats:
    """Entries whose importance reaches the threshold from the source, the rest from the base."""
    if not base.size:
        return base
    length = shape[-1] if shape else 1
    rows = base.reshape(-1, length), sources[0].reshape(-1, length)
    delta = rows[1] - rows[0]
    importance = np.abs(delta) * divergences(*rows)[:, None]
    ranked = np.sort(importance.reshape(-1))
    lower, median, upper = (ranked[math.floor(q * (ranked.size - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + np.float32(1.5) * (upper - lower)
    merged: Floats = rows[0] + np.where(importance >= threshold, delta, np.float32(0))
    return merged.reshape(base.shape)


FREE_ORACLES: dict[str, Callable[..., Floats]] = {
    "arcee_fusion": oracle_arcee_fusion,
    "nearswap": oracle_nearswap,
    "ram": oracle_ram,
    "ramplus_tl": oracle_ram,
    "sce": oracle_sce,
}
"""By method, all of one form: base, sources, the tensor's shape, the knobs that were given."""
