"""Breadcrumbs and DELLA as the numeric contract says, written slowly; see `oracles.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tests.oracles import Doubles, Floats, Mask, delta_pass, draw_key, drawn_words, l1_rescaling


def kept_band(delta: Floats, density: float, gamma: float) -> Mask:
    """Entries between the largest and the smallest, by a full sort of their magnitudes.

    Of m entries tied at an end of the band, q stay: the j-th in index order iff
    `(j + 1) * q // m > j * q // m`.
    """
    magnitude = np.abs(delta.reshape(-1))
    n = magnitude.size
    mask = np.ones(n, np.bool_)
    if density >= 1:
        return mask
    target, top = int(density * n), int(gamma * n)
    bottom = max(0, n - target - top)
    inside = np.sort(magnitude)[bottom : bottom + target]
    mask[:] = False
    for value in np.unique(inside):
        tied = np.flatnonzero(magnitude == value)
        q, m = int((inside == value).sum()), len(tied)
        for j, index in enumerate(tied.tolist()):
            mask[index] = (j + 1) * q // m > j * q // m
    return mask


def oracle_breadcrumbs(
    base: Floats,
    sources: Sequence[Floats],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    elect: bool,
    rescale: bool,
    normalize: bool,
    lambda_: float,
) -> Floats:
    """Drop both ends of each task vector, optionally elect, fuse."""
    deltas = [(source - base).astype(np.float32) for source in sources]
    kept = [
        np.where(kept_band(delta, share, top), delta, np.float32(0))
        for delta, share, top in zip(deltas, density, gamma, strict=True)
    ]
    scales = [
        l1_rescaling(delta, part) if rescale else 1.0
        for delta, part in zip(deltas, kept, strict=True)
    ]
    return delta_pass(
        base,
        kept,
        shares=[value * scale for value, scale in zip(weight, scales, strict=True)],
        weight=weight,
        elect=elect,
        normalize=normalize,
        lambda_=lambda_,
    )


def probabilities(delta: Floats, shape: Sequence[int], density: float, epsilon: float) -> Doubles:
    """Each entry's probability to stay, by its rank along dimension 1; a vector is one row."""
    if not 0 < density < 1:
        return np.full(delta.size, density)
    wide = tuple(shape) if len(shape) > 1 else (1, delta.size)
    magnitude = np.abs(delta).reshape(wide)
    length = wide[1]
    if length == 1:
        return np.full(delta.size, density)
    order = np.argsort(magnitude, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    rising: Doubles = density - epsilon + 2 * epsilon * (ranks / (length - 1))
    return np.clip(rising, 0.0, 1.0).reshape(-1)


def kept_ranked(
    delta: Floats,
    shape: Sequence[int],
    density: float,
    epsilon: float,
    *,
    rescale: bool,
    key: int,
) -> Floats:
    """The entries that DELLA keeps, divided by their probability under `rescale`; 0 elsewhere."""
    chance = probabilities(delta, shape, density, epsilon)
    stays = drawn_words(key, 0, delta.size) < np.floor(chance * 2**32)
    factors = np.ones(delta.size)
    if rescale:
        np.divide(1.0, chance, out=factors, where=stays)
    return np.where(stays, delta * factors.astype(np.float32), np.float32(0))


def oracle_della(
    base: Floats,
    sources: Sequence[Floats],
    *,
    shape: Sequence[int],
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    elect: bool,
    rescale: bool | Literal["l1"],
    normalize: bool,
    lambda_: float,
    seed: int,
    labels: Sequence[str],
    tensor: str,
) -> Floats:
    """Drop at random by rank, rescale, optionally elect, fuse: `della_linear` and `della`."""
    deltas = [(source - base).astype(np.float32) for source in sources]
    kept = [
        kept_ranked(
            delta,
            shape,
            share,
            spread,
            rescale=rescale is True,
            key=draw_key(seed, label, tensor),
        )
        for delta, share, spread, label in zip(deltas, density, epsilon, labels, strict=True)
    ]
    scales = [
        l1_rescaling(delta, part) if rescale == "l1" else 1.0
        for delta, part in zip(deltas, kept, strict=True)
    ]
    return delta_pass(
        base,
        kept,
        shares=[value * scale for value, scale in zip(weight, scales, strict=True)],
        weight=weight,
        elect=elect,
        normalize=normalize,
        lambda_=lambda_,
    )
