"""Values of a mapping's keys, each of the kind it has to be."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

from raymerge.recipe.document import Fields, Items, Node, Scalar


def mapping(node: Node, key: str, what: str) -> Fields:
    """The node as a mapping; `what` says of what, for the error."""
    if isinstance(node, Fields):
        return node
    raise node.place.error(f"{key} is {node.shown}; allowed: a mapping with {what}")


def words(top: Fields | None, key: str) -> tuple[str, ...]:
    """A list of words, or a single one; empty where the key is missing."""
    node = top.get(key) if top else None
    if node is None:
        return ()
    items = node.items if isinstance(node, Items) else (node,)
    return tuple(dict.fromkeys(item.as_text(key) for item in items))


def word(top: Fields, key: str) -> str | None:
    """A single word; None where the key is missing."""
    node = top.get(key)
    return None if node is None else node.as_text(key)


def numbers(top: Fields, key: str) -> dict[str, float]:
    """A number per name; empty where the key is missing."""
    node = top.get(key)
    if node is None:
        return {}
    fields = mapping(node, key, "a number per task")
    found = {name: number(fields, name, _any, "a number") for name in fields.fields}
    for name, value in found.items():
        if value is None:
            raise fields.place_of(name).error(f"{name}: has no number")
    return {name: value for name, value in found.items() if value is not None}


def number(
    top: Fields | None, key: str, fits: Callable[[float], bool], allowed: str
) -> float | None:
    """A finite number that fits; None where the key is missing."""
    node = top.get(key) if top else None
    if node is None:
        return None
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = float(value)
        if isfinite(found) and fits(found):
            return found
    raise node.place.error(f"{key} is {node.shown}; allowed: {allowed}")


def whole(top: Fields, key: str) -> int | None:
    """A whole number from 1 on; None where the key is missing."""
    found = number(top, key, lambda value: value >= 1 and value.is_integer(), "1 or more, whole")
    return None if found is None else int(found)


def single(node: Node, key: str) -> int | float | str | bool | None:
    """The value of a scalar of any kind; None for an empty one."""
    if isinstance(node, Scalar):
        return node.value
    raise node.place.error(f"{key} is {node.shown}; allowed: a single value")


def singles(top: Fields, key: str) -> dict[str, int | float | str | bool]:
    """A mapping of single values; empty where the key is missing."""
    node = top.get(key)
    if node is None:
        return {}
    fields = mapping(node, key, "single values")
    found = {name: single(field.node, name) for name, field in fields.fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def positive(value: float) -> bool:
    """Whether it is above 0."""
    return value > 0


def not_negative(value: float) -> bool:
    """Whether it is 0 or above."""
    return value >= 0


def _any(_: float) -> bool:
    return True
