"""One knob's value as a recipe writes it.

    0.5                              the same everywhere
    [0, 0.5, 1]                      a gradient over the layers
    {value: 0.5, filter: mlp}        only where the tensor name contains `mlp`
    [{value: ..., filter: ...}, ...] the first that matches

All four become a tuple of clauses. Types and ranges are checked here, against the registry, so that
after reading there is nothing left to check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymerge.recipe.document import Fields, Items, Node, Place, Scalar
from raymerge.recipe.scalars import read_plain
from raymerge.recipe.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from raymerge.errors import RecipeError
    from raymerge.methods.registry import Knob, KnobValue

# YAML 1.1's other booleans: what mergekit's YAML reader makes of these words.
_BOOL_WORDS = {"yes": True, "on": True, "no": False, "off": False}
# What a density above 1 may be meant as: nobody keeps 1.2 % of a task vector.
_MIN_PERCENT, _MAX_PERCENT = 2, 100

CONDITION_KEYS = ("value", "filter")
"""Of an entry in a list of conditional values."""


@dataclass(frozen=True, slots=True)
class Clause:
    """A value and the tensors it is for."""

    place: Place
    filter: str | None
    """Substring of the tensor name; None is every tensor."""
    anchors: tuple[KnobValue, ...]
    """The values of a gradient, first layer to last; a single one is a constant."""

    def matches(self, name: str) -> bool:
        """Whether this clause is for the tensor of that name."""
        return self.filter is None or self.filter in name


@dataclass(frozen=True, slots=True)
class Setting:
    """What one `parameters:` mapping says about one knob."""

    place: Place
    clauses: tuple[Clause, ...]

    @property
    def constant(self) -> bool:
        """Whether every tensor gets the same value."""
        first = self.clauses[0]
        return first.filter is None and len(first.anchors) == 1

    @property
    def unreached(self) -> tuple[Clause, ...]:
        """Clauses that stand after one that always matches."""
        always = [index for index, clause in enumerate(self.clauses) if clause.filter is None]
        return self.clauses[always[0] + 1 :] if always else ()


def read_setting(knob: Knob, node: Node) -> Setting:
    """Read and check what a recipe says about `knob`.

    Raises:
        RecipeError: Wrong type, out of range, or a form this knob cannot take.
    """
    clauses = tuple(_clauses(knob, node))
    if knob.kind is None and (clauses[0].filter is not None or not isinstance(node, Scalar)):
        raise node.place.error(
            f"{knob.name}: must be the same for every tensor; allowed: {knob.allowed}"
        )
    return Setting(node.place, clauses)


def _clauses(knob: Knob, node: Node) -> Iterator[Clause]:
    if isinstance(node, Fields):
        yield _conditional(knob, node)
    elif isinstance(node, Items) and any(isinstance(item, Fields) for item in node.items):
        for item in node.items:
            if not isinstance(item, Fields):
                raise item.place.error(
                    f"{knob.name}: {item.shown} among conditions; write it as {{value: "
                    f"{item.shown}}} or make the whole list numbers"
                )
            yield _conditional(knob, item)
    else:
        yield Clause(node.place, None, _anchors(knob, node))


def _conditional(knob: Knob, fields: Fields) -> Clause:
    fields.check_keys(f"a condition of {knob.name}", CONDITION_KEYS)
    value = fields.get("value")
    if value is None:
        raise fields.place.error(f"{knob.name}: a condition without a value; write {{value: ...}}")
    if isinstance(value, Fields):
        raise value.place.error(f"{knob.name}: a condition inside a condition; allowed: a value")
    wanted = fields.get("filter")
    text = wanted.as_text("filter") if wanted is not None else "*"
    return Clause(fields.place, None if text == "*" else text, _anchors(knob, value))


def _anchors(knob: Knob, node: Scalar | Items) -> tuple[KnobValue, ...]:
    if isinstance(node, Scalar):
        return (_value(knob, node),)
    if knob.kind not in (int, float):
        raise node.place.error(
            f"{knob.name} is a list; only numbers can be a gradient; allowed: {knob.allowed}"
        )
    if not node.items:
        raise node.place.error(f"{knob.name} is an empty list; allowed: {knob.allowed}")
    return tuple(_anchor(knob, item) for item in node.items)


def _anchor(knob: Knob, item: Node) -> KnobValue:
    if not isinstance(item, Scalar):
        raise item.place.error(f"{knob.name}: a list inside a gradient; allowed: {knob.allowed}")
    if isinstance(item.value, str):
        raise _refused(knob, item)
    return _value(knob, item)


def _value(knob: Knob, scalar: Scalar) -> KnobValue:
    value = scalar.value
    if isinstance(value, str) and value in knob.choices:
        return value
    if knob.kind is bool:
        return _boolean(knob, scalar)
    if knob.kind is None or isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(knob, scalar)
    return _number(knob, scalar, value)


def _boolean(knob: Knob, scalar: Scalar) -> bool:
    # Older mergekit read every parameter as a float, and recipes still say `normalize: 1`.
    if scalar.value in (0, 1):
        return bool(scalar.value)
    if not scalar.quoted and scalar.text.lower() in _BOOL_WORDS:
        return _BOOL_WORDS[scalar.text.lower()]
    raise _refused(knob, scalar)


def _number(knob: Knob, scalar: Scalar, value: float) -> float:
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise _refused(knob, scalar, "; it has to be finite")
    if knob.limits and not knob.limits.lower <= real <= knob.limits.upper:
        raise _out_of_range(knob, scalar, real)
    if knob.kind is int:
        if not real.is_integer():
            raise _refused(knob, scalar)
        return int(value)
    # -0.0 becomes 0.0: the two are equal, so tensors that get one or the other share a node.
    return real + 0.0


def _out_of_range(knob: Knob, scalar: Scalar, value: float) -> RecipeError:
    if knob.name != "density" or knob.limits is None:
        return _refused(knob, scalar)
    hint = (
        f" For {value:g}% write {value / 100:g}." if _MIN_PERCENT <= value <= _MAX_PERCENT else ""
    )
    lower, upper = knob.limits.lower, knob.limits.upper
    return scalar.place.error(
        f"density is {scalar.shown}; it is the fraction to keep, from {lower:g} to {upper:g}.{hint}"
    )


def _refused(knob: Knob, scalar: Scalar, reason: str = "") -> RecipeError:
    message = f"{knob.name} is {scalar.shown}{reason}; allowed: {knob.allowed}."
    return scalar.place.error(message + _remedy(knob, scalar))


def _remedy(knob: Knob, scalar: Scalar) -> str:
    """How to write what was probably meant, where that can be told."""
    if not isinstance(scalar.value, str):
        return ""
    bare = read_plain(scalar.text)
    if scalar.quoted and isinstance(bare, bool if knob.kind is bool else int | float):
        return f" Write {scalar.text} without quotes."
    ungrouped = scalar.text.replace("_", "")
    if knob.kind in (int, float) and isinstance(read_plain(ungrouped), int | float):
        return f" Write {ungrouped}."
    words = [*knob.choices, *(("true", "false") if knob.kind is bool else ())]
    return did_you_mean(scalar.text, words)
