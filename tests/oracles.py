"""What the numeric contract says, written slowly: the references that merges must equal.

Nothing here comes from `raymerge.kernels` or `raymerge.methods`. Decisions (delta, threshold,
election) are float32 in recipe order; reductions and coefficients are float64, and reductions
follow the contract's order, so that results can be compared bit by bit.

Every oracle takes sources as float32 arrays (`from_dtype` widens stored bytes) and returns the
float32 result before the one cast (`to_dtype`). `weight` and `density` have one value per source.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
WORD = 0xFFFFFFFF


# --- casts ---------------------------------------------------------------------------------------


def to_dtype(values: Floats, dtype: DType | str) -> bytes:
    """Little-endian bytes of float32 `values` as `dtype`, rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, np.float32)
    match DType(dtype):
        case DType.F64:
            return values.astype("<f8").tobytes()
        case DType.F32:
            return values.astype("<f4").tobytes()
        case DType.F16:
            with np.errstate(over="ignore"):
                return values.astype("<f2").tobytes()
        case DType.BF16:
            bits = values.view(np.uint32).astype(np.uint64)
            low = bits & 0xFFFF
            high = bits >> 16
            up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
            rounded = np.where(np.isnan(values), high | 0x40, high + up)
            return rounded.astype("<u2").tobytes()
        case other:
            raise ValueError(f"no cast to {other}")


def from_dtype(stored: bytes, dtype: DType | str) -> Floats:
    """Stored little-endian elements, widened (float64: rounded) to float32."""
    match DType(dtype):
        case DType.F64:
            with np.errstate(over="ignore"):
                return np.frombuffer(stored, "<f8").astype(np.float32)
        case DType.F32:
            return np.frombuffer(stored, "<f4").astype(np.float32)
        case DType.F16:
            return np.frombuffer(stored, "<f2").astype(np.float32)
        case DType.BF16:
            return (np.frombuffer(stored, "<u2").astype(np.uint32) << 16).view(np.float32)
        case other:
            raise ValueError(f"no cast from {other}")


# --- draws ---------------------------------------------------------------------------------------


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of Salmon et al. (SC 2011), on Python ints or on arrays of uint64."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & WORD, (p >> 32) ^ d ^ m, p & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return a, b, c, d


def draw_key(seed: int, label: str, tensor: str) -> int:
    """The 64-bit key of one source's draws for one output tensor."""
    digest = hashlib.blake2b(f"{seed}\0{label}\0{tensor}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def drawn_words(key: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """The word of each entry of `[first, first + count)`: word `i % 4` of counter `i // 4`."""
    counters = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    zeros = np.zeros_like(counters)
    words = philox4x32((counters & WORD, counters >> 32, zeros, zeros), (key & WORD, key >> 32))
    return np.stack(words, axis=1).reshape(-1)[first % 4 :][:count]


def drawn_limit(density: float) -> int:
    """An entry stays iff its word is below this. Below a density of 2**-32 none does."""
    return math.floor(density * 2**32)


def kept_drawn(size: int, density: float, *, seed: int, label: str, tensor: str) -> Mask:
    """Entries that DARE keeps: those whose word is below the limit."""
    words = drawn_words(draw_key(seed, label, tensor), 0, size)
    return np.less(words, drawn_limit(density))


# --- selection -----------------------------------------------------------------------------------


def kept_largest(delta: Floats, density: float) -> Mask:
    """The `max(1, int(density * n))` entries of the largest magnitude, by a full sort.

    Of m entries tied at the threshold q stay: the j-th in index order iff
    `(j + 1) * q // m > j * q // m`.
    """
    magnitude = np.abs(delta.reshape(-1))
    if density <= 0 or magnitude.size == 0:
        return np.zeros(magnitude.size, np.bool_)
    keep = max(1, int(density * magnitude.size))
    lowest = np.sort(magnitude)[::-1][keep - 1]
    mask: Mask = magnitude > lowest
    tied = np.flatnonzero(magnitude == lowest)
    q, m = keep - int(mask.sum()), len(tied)
    for j, index in enumerate(tied.tolist()):
        mask[index] = (j + 1) * q // m > j * q // m
    return mask


# --- reductions ----------------------------------------------------------------------------------


def ordered_sum(terms: Doubles) -> float:
    """Sum float64 terms in the contract's order.

    Blocks of 2**20 elements, element i into lane i mod 256 in rising order, lanes folded in halves,
    blocks added in order.
    """
    total = 0.0
    for begin in range(0, terms.size, 2**20):
        block = terms[begin : begin + 2**20]
        padded = np.zeros(-(-block.size // 256) * 256)
        padded[: block.size] = block
        lanes = np.zeros(256)
        for row in padded.reshape(-1, 256):
            lanes = lanes + row
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        total += float(lanes[0])
    return total


def inner(left: Floats, right: Floats) -> float:
    """The contract's inner product: exact float64 products, summed in order."""
    return ordered_sum(left.reshape(-1).astype(np.float64) * right.reshape(-1).astype(np.float64))


def l1_norm(values: Floats) -> float:
    """The contract's L1 norm."""
    return ordered_sum(np.abs(values.reshape(-1)).astype(np.float64))


def l1_rescaling(whole: Floats, kept: Floats) -> float:
    """The factor that gives `kept` the L1 norm of `whole`; 1 where either is below 1e-7."""
    norms = l1_norm(whole), l1_norm(kept)
    return norms[0] / norms[1] if min(norms) >= 1e-7 else 1.0


# --- the two fused passes ------------------------------------------------------------------------


def span_pass(vectors: Sequence[Floats], coefficients: Sequence[float]) -> Floats:
    """`sum c_i x_i` in float32, in recipe order, each coefficient rounded once."""
    mix: Floats = np.zeros_like(vectors[0])
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        mix = mix + vector * np.float32(coefficient)
    return mix


def relative_span_pass(
    base: Floats, sources: Sequence[Floats], coefficients: Sequence[float]
) -> Floats:
    """`base + sum c_i (x_i - base)`."""
    return base + span_pass([source - base for source in sources], coefficients)


def delta_pass(
    base: Floats,
    kept: Sequence[Floats],
    *,
    shares: Sequence[float],
    weight: Sequence[float],
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Floats:
    """Weight, elect, fuse and add task vectors of which only what is kept is not 0."""
    weighted = [delta * np.float32(share) for delta, share in zip(kept, shares, strict=True)]
    votes: Floats = np.zeros_like(base)
    for delta in weighted:
        votes = votes + delta
    mix: Floats = np.zeros_like(base)
    divisor: Floats = np.zeros_like(base)
    sign = np.where(votes >= 0, np.float32(1), np.float32(-1))
    for delta, value in zip(weighted, weight, strict=True):
        takes_part = np.sign(delta) == sign if elect else np.ones(base.shape, np.bool_)
        mix = mix + np.where(takes_part, delta, np.float32(0))
        divisor = divisor + takes_part * np.float32(value)
    if normalize:
        divisor[divisor == 0] = 1
        mix = mix / divisor
    return base + mix * np.float32(lambda_)


# --- methods -------------------------------------------------------------------------------------


def oracle_linear(sources: Sequence[Floats], *, weight: Sequence[float], normalize: bool) -> Floats:
    """`sum w_i x_i`, under `normalize` with each weight divided by their sum."""
    total = sum(weight) if normalize else 1.0
    return span_pass(sources, [value / total for value in weight])


def oracle_task_arithmetic(
    base: Floats,
    sources: Sequence[Floats],
    *,
    weight: Sequence[float],
    lambda_: float,
    normalize: bool,
) -> Floats:
    """`base + lambda * sum w_i (x_i - base)`."""
    total = sum(weight) if normalize and any(weight) else 1.0
    return relative_span_pass(base, sources, [lambda_ * value / total for value in weight])


def oracle_slerp(base: Floats, source: Floats, *, t: float) -> Floats:
    """The great circle from `base` to `source`, a straight line where there is none."""
    lengths = math.sqrt(inner(base, base)), math.sqrt(inner(source, source))
    straight = [1 - t, t]
    if min(lengths) <= 1e-8:
        return span_pass([base, source], straight)
    cosine = min(1.0, max(-1.0, inner(base, source) / (lengths[0] * lengths[1])))
    if abs(cosine) > 0.9995:
        return span_pass([base, source], straight)
    angle = math.acos(cosine)
    arc = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return span_pass([base, source], arc)


def oracle_ties(
    base: Floats,
    sources: Sequence[Floats],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool = True,
    lambda_: float = 1.0,
    rescale: Literal["l1"] | None = None,
    masks: Sequence[Mask] | None = None,
) -> Floats:
    """Trim, elect, mean of what agrees; `masks` replaces the trim of each tensor by another."""
    deltas = [(source - base).astype(np.float32) for source in sources]
    if masks is None:
        masks = [kept_largest(delta, value) for delta, value in zip(deltas, density, strict=True)]
    kept = _masked(deltas, masks)
    scales = [
        l1_rescaling(delta, part) if rescale else 1.0
        for delta, part in zip(deltas, kept, strict=True)
    ]
    return delta_pass(
        base,
        kept,
        shares=[value * scale for value, scale in zip(weight, scales, strict=True)],
        weight=weight,
        elect=True,
        normalize=normalize,
        lambda_=lambda_,
    )


def oracle_dare(
    base: Floats,
    sources: Sequence[Floats],
    *,
    weight: Sequence[float],
    density: Sequence[float],
    elect: bool,
    rescale: bool | Literal["l1"],
    normalize: bool,
    lambda_: float,
    seed: int,
    labels: Sequence[str],
    tensor: str,
) -> Floats:
    """Drop at random, rescale, optionally elect, fuse: `dare_linear` and (`elect`) `dare_ties`."""
    deltas = [(source - base).astype(np.float32) for source in sources]
    masks = [
        kept_drawn(base.size, value, seed=seed, label=label, tensor=tensor)
        for value, label in zip(density, labels, strict=True)
    ]
    kept = _masked(deltas, masks)
    scales = []
    for whole, part, value in zip(deltas, kept, density, strict=True):
        if rescale == "l1":
            scales.append(l1_rescaling(whole, part))
        else:
            scales.append(1 / value if rescale and drawn_limit(value) else 1.0)
    return delta_pass(
        base,
        kept,
        shares=[value * scale for value, scale in zip(weight, scales, strict=True)],
        weight=weight,
        elect=elect,
        normalize=normalize,
        lambda_=lambda_,
    )


def _masked(deltas: Sequence[Floats], masks: Sequence[Mask]) -> list[Floats]:
    return [
        np.where(mask.reshape(delta.shape), delta, np.float32(0))
        for delta, mask in zip(deltas, masks, strict=True)
    ]
