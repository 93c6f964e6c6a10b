"""From values to pixels, and where an axis has its ticks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import median
from typing import cast

from raymerge.sweep.report.marks import cut, text_width
from raymerge.sweep.trial import Value

_TICK_PX = 62.0
"""How far apart the ticks of an axis are, about."""
_UPRIGHT_TICK_PX = 34.0
"""And of one that points up."""
_PAD = 0.06
_LEAST_SPREAD = 1e-6
"""Of values, relative to the largest; an axis of values closer together shows them as one."""
_LEAST = 1e-100
"""Below which a value is as good as 0."""
_LOG_RATIO = 50
"""Of the largest to the smallest value, from which an axis may be logarithmic."""
_MAX_PLAIN_DIGITS = 6
_GAP_PX = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis."""

    at: Callable[[Value], float]
    """The pixel of a value."""
    ticks: tuple[tuple[float, str], ...]
    """Pixels and what is written at them."""
    band: float = 0.0
    """Pixels that a value has for itself, where it has a place rather than a point."""


def is_numeric(values: Sequence[Value]) -> bool:
    """Whether they are numbers; true and false are not."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def shown(value: Value) -> str:
    """A value as tables and labels have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def scale_for(values: Sequence[Value], first_px: float, last_px: float) -> Scale:
    """Linear, logarithmic where values are spread so, or a place per value for other than numbers.

    Args:
        values: At least one.
        first_px: Where the smallest belongs, about.
        last_px: Where the largest does; may be the smaller pixel.
    """
    if not is_numeric(values):
        return categories(values, first_px, last_px)
    numbers = cast("Sequence[float]", values)
    if _is_spread(numbers):
        return _logarithmic(numbers, first_px, last_px)
    return linear(numbers, first_px, last_px)


def linear(
    values: Sequence[float], first_px: float, last_px: float, *, from_zero: bool = False
) -> Scale:
    """An even axis over the values and a little more; `from_zero` for bars, which start there."""
    low, high = min(values), max(values)
    if from_zero:
        low, high = 0.0, high * (1 + _PAD) or 1.0
    else:
        largest = max(abs(low), abs(high))
        if high - low > _LEAST_SPREAD * largest and largest > _LEAST:
            pad = (high - low) * _PAD
        else:
            pad = 0.1 * largest if largest > _LEAST else 1.0
        low, high = low - pad, high + pad
    per_unit = (last_px - first_px) / (high - low)

    def at(value: Value) -> float:
        return first_px + (float(value) - low) * per_unit

    apart = _TICK_PX if first_px < last_px else _UPRIGHT_TICK_PX
    ticks = _round_values(low, high, max(2, int(abs(last_px - first_px) / apart)))
    return Scale(at=at, ticks=tuple((at(tick), text) for tick, text in ticks))


def categories(values: Sequence[Value], first_px: float, last_px: float) -> Scale:
    """An even place per value, in the order in which they come; labels only as many as fit."""
    places = {shown(value): number for number, value in enumerate(dict.fromkeys(values))}
    band = (last_px - first_px) / len(places)

    def at(value: Value) -> float:
        return first_px + (places[shown(value)] + 0.5) * band

    least = min(max(map(text_width, places)), 56.0) + _GAP_PX
    step = max(1, ceil(least / abs(band)))
    ticks = [
        (first_px + (number + 0.5) * band, cut(text, step * abs(band) - _GAP_PX))
        for text, number in places.items()
        if number % step == 0
    ]
    return Scale(at=at, ticks=tuple(ticks), band=abs(band))


def _is_spread(values: Sequence[float]) -> bool:
    """Whether the middle value is nearer to the geometric mean of both ends than to the other."""
    low, high, middle = min(values), max(values), median(values)
    if low <= 0 or high / low < _LOG_RATIO:
        return False
    to_geometric = abs(log10(middle) - (log10(low) + log10(high)) / 2)
    return to_geometric < abs(log10(middle) - log10(low / 2 + high / 2))


def _logarithmic(values: Sequence[float], first_px: float, last_px: float) -> Scale:
    inner = linear([log10(value) for value in values], first_px, last_px)

    def at(value: Value) -> float:
        return inner.at(log10(float(value)))

    low, high = log10(min(values)), log10(max(values))
    step = max(1, round((high - low) * _TICK_PX / abs(last_px - first_px)))
    powers = range(ceil(low - 1e-9), floor(high + 1e-9) + 1, step)
    return Scale(at=at, ticks=tuple((inner.at(power), f"{10.0**power:g}") for power in powers))


def _round_values(low: float, high: float, number: int) -> Iterator[tuple[float, str]]:
    """About so many values of few digits between both."""
    rough = (high - low) / number
    unit = 10.0 ** floor(log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    largest = floor(log10(max(abs(low), abs(high))))
    digits = largest - floor(log10(step) + 1e-9) + 1
    if largest < _MAX_PLAIN_DIGITS:
        digits = max(digits, largest + 1)
    for count in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1):
        yield count * step, f"{count * step:.{max(1, digits)}g}"
