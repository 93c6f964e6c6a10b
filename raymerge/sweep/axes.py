"""The axes of a sweep, and how its trials are drawn from them.

    axes:
      density: [0.2, 0.5]                a list: numbers, words, true and false
      w: {linspace: [0, 1, 5]}           5 numbers from 0 to 1, both ends among them
      lambda: {geomspace: [0.1, 10, 3]}  0.1, 1, 10
      seed: {range: [0, 4]}              0, 1, 2, 3
      t: {uniform: [0, 1]}               any number: for `sample` and `search`
      e: {log_uniform: [0.001, 1]}       likewise, evenly over orders of magnitude
      k: {int: [1, 8]}                   a whole number from 1 to 8

Without `sample` and `search` the trials are every combination, the last axis turning fastest.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raymerge.recipe.document import Fields, Items, Node, Place, Scalar
from raymerge.recipe.wording import listed
from raymerge.sweep.trial import Value

MAX_TRIALS = 100_000
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DIGITS = 12
"""Of a step between two ends: 0.3, and not 0.30000000000000004."""


@dataclass(frozen=True, slots=True)
class Choices:
    """An axis of some values."""

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value at a share of the way, `0 <= share < 1`."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True, slots=True)
class Span:
    """An axis of all numbers between two, both included."""

    kind: Literal["uniform", "log_uniform", "int"]
    lower: float
    upper: float

    def at(self, share: float) -> Value:
        """The value at a share of the way, `0 <= share < 1`."""
        if self.kind == "int":
            return int(self.lower) + int(share * (int(self.upper) - int(self.lower) + 1))
        if self.kind == "log_uniform":
            value = math.exp(_between(math.log(self.lower), math.log(self.upper), share))
        else:
            value = _between(self.lower, self.upper, share)
        return min(max(value, self.lower), self.upper)

    @property
    def ends(self) -> tuple[Value, Value]:
        """The least and the greatest."""
        if self.kind == "int":
            return int(self.lower), int(self.upper)
        return self.lower, self.upper


Axis = Choices | Span


def _between(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def read_axes(node: Node) -> dict[str, Axis]:
    """The axes by name.

    Raises:
        RecipeError: A name that cannot be referred to, an axis without values, or none.
    """
    if not isinstance(node, Fields) or not node.fields:
        raise node.place.error(f"axes is {node.shown}; allowed: a mapping of names to values")
    for name, field in node.fields.items():
        if not _NAME.fullmatch(name):
            raise field.place.error(
                f"axes: {name!r} is no name; allowed: letters, digits and _, to be used as $name"
            )
    return {name: _read_axis(name, field.node) for name, field in node.fields.items()}


def _read_axis(name: str, node: Node) -> Axis:
    if isinstance(node, Items):
        return Choices(_distinct(name, node))
    if not isinstance(node, Fields) or len(node.fields) != 1:
        raise node.place.error(
            f"{name} is {node.shown}; allowed: a list, or one of {listed(_FORMS)} with its values"
        )
    node.check_keys(f"axis {name}", _FORMS)
    [(form, field)] = node.fields.items()
    if not isinstance(field.node, Items):
        raise field.place.error(f"{form} is {field.node.shown}; allowed: a list of numbers")
    return _FORMS[form](f"{name}: {form}", field.node)


def _distinct(name: str, node: Items) -> tuple[Value, ...]:
    values = [_scalar(name, item) for item in node.items]
    if not values:
        raise node.place.error(f"{name} is an empty list; give it values")
    if len({(type(value), value) for value in values}) < len(values):
        raise node.place.error(f"{name}: a value is listed twice; give each once")
    return tuple(values)


def _scalar(name: str, node: Node) -> Value:
    value = node.value if isinstance(node, Scalar) else None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise node.place.error(f"{name}: {node.shown} is no number, word, true or false")
    return value


def _numbers(what: str, node: Items, count: Sequence[int]) -> list[float]:
    values = [_scalar(what, item) for item in node.items]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) not in count or len(numbers) < len(values):
        counts = " or ".join(map(str, count))
        raise node.place.error(f"{what} has {len(values)} values; allowed: {counts} numbers")
    return numbers


def _steps(what: str, node: Items) -> tuple[float, float, int]:
    first, last, number = _numbers(what, node, [3])
    if not isinstance(number, int) or not 1 < number <= MAX_TRIALS or first == last:
        raise node.place.error(f"{what}: allowed: two different ends and how many, 2 or more")
    return first, last, number


def _tidy(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def evenly(first: float, last: float, number: int) -> tuple[float, ...]:
    """Numbers from one to another, both among them, two or more."""
    return tuple(_tidy(first + (last - first) * i / (number - 1)) for i in range(number))


def _linspace(what: str, node: Items) -> Axis:
    return Choices(evenly(*_steps(what, node)))


def _geomspace(what: str, node: Items) -> Axis:
    first, last, number = _steps(what, node)
    if first <= 0 or last <= 0:
        raise node.place.error(f"{what}: both ends have to be above 0")
    ratio = last / first
    return Choices(tuple(_tidy(first * ratio ** (i / (number - 1))) for i in range(number)))


def _range(what: str, node: Items) -> Axis:
    bounds = _numbers(what, node, [2, 3])
    whole = [bound for bound in bounds if isinstance(bound, int)]
    if len(whole) < len(bounds) or bounds[2:] == [0]:
        raise node.place.error(f"{what}: allowed: whole numbers, [first, past the last, step]")
    values = range(*whole)
    if not 0 < len(values) <= MAX_TRIALS:
        raise node.place.error(f"{what} holds {len(values)} numbers; give it 1 to {MAX_TRIALS}")
    return Choices(tuple(values))


def _choice(what: str, node: Items) -> Axis:
    return Choices(_distinct(what, node))


def _span(kind: Literal["uniform", "log_uniform", "int"]) -> Callable[[str, Items], Axis]:
    def read(what: str, node: Items) -> Axis:
        lower, upper = _numbers(what, node, [2])
        if lower >= upper or (kind == "log_uniform" and lower <= 0):
            above = ", above 0" if kind == "log_uniform" else ""
            raise node.place.error(f"{what}: allowed: [lower, upper]{above}")
        if kind == "int" and not (isinstance(lower, int) and isinstance(upper, int)):
            raise node.place.error(f"{what}: allowed: two whole numbers")
        return Span(kind, lower, upper)

    return read


_FORMS: dict[str, Callable[[str, Items], Axis]] = {
    "linspace": _linspace,
    "geomspace": _geomspace,
    "range": _range,
    "choice": _choice,
    "uniform": _span("uniform"),
    "log_uniform": _span("log_uniform"),
    "int": _span("int"),
}


def grid(axes: Mapping[str, Axis], place: Place) -> Iterator[dict[str, Value]]:
    """Every combination.

    Raises:
        RecipeError: An axis has no end of values, or there are too many.
    """
    lists = []
    for name, axis in axes.items():
        if isinstance(axis, Span):
            raise place.error(
                f"axes: {name} is {axis.kind}, of which there is no list; add sample: {{n: 20}} or "
                "search: {trials: 64}, or give a list or linspace"
            )
        lists.append(axis.values)
    if (number := math.prod(map(len, lists))) > MAX_TRIALS:
        raise place.error(f"axes: {number} trials; at most {MAX_TRIALS}. Use sample")
    return (dict(zip(axes, point, strict=True)) for point in itertools.product(*lists))


def sample(axes: Mapping[str, Axis], *, number: int, seed: int) -> Iterator[dict[str, Value]]:
    """Points drawn at random.

    A draw depends on the seed, the axis and its position alone: more trials, or another axis, leave
    the others as they are.
    """
    for i in range(number):
        yield {name: axis.at(_share(f"{seed}:{name}:{i}")) for name, axis in axes.items()}


def _share(key: str) -> float:
    bits = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return (bits >> 11) / 2**53
