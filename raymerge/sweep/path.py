"""`path:` of a sweep block: what lies between two checkpoints.

    path: {from: models/a, to: models/b, points: 11, along: line}

A ready sweep of one round: `points` trials from `t: 0`, which is `from`, to `t: 1`, which is `to`;
`line` merges them by linear, `arc` by slerp. The rest of the recipe (dtype, keep, drop and so on)
holds for each.
"""

from __future__ import annotations

from raymerge.recipe.document import Fields, Items, Node, Scalar
from raymerge.sweep.axes import Axis, Choices, evenly
from raymerge.sweep.evaluation.values import mapping, number
from raymerge.sweep.trees import keyed, refuse, word

POINTS = 11
MAX_POINTS = 1001
AXIS = "t"
_METHODS = {"line": "linear", "arc": "slerp"}
OWN_KEYS = ("merge_method", "models", "base_model", "slices", "modules", "parameters")
"""Keys of a recipe that the block decides."""


def read_path(node: Node, top: Fields) -> tuple[Fields, dict[str, Axis]]:
    """The recipe of a path with `$t` open, and the axis of `t`.

    Args:
        node: Under `path`.
        top: The recipe's other keys.

    Raises:
        RecipeError: A key is wrong or missing, or the recipe says itself what is merged.
    """
    fields = mapping(node, "path", "{from: a model, to: a model}")
    fields.check_keys("path", ("from", "to", "points", "along"))
    refuse(top, OWN_KEYS, "path")
    first, last = _end(fields, "from"), _end(fields, "to")
    if _location(first) == _location(last) is not None:
        raise fields.place_of("to").error("to: is the model that from is; a path has two ends")
    along = _along(fields)
    built = _line(first, last) if along == "line" else _arc(first, last)
    method = word(_METHODS[along], fields.place_of("along"))
    document = Fields(top.place, {**keyed({"merge_method": method, **built}), **top.fields})
    return document, {AXIS: Choices(evenly(0, 1, _points(fields)))}


def _end(fields: Fields, key: str) -> Node:
    node = fields.get(key)
    if node is None:
        raise fields.place.error(f"{key}: missing; a path runs from: one model, to: another")
    if isinstance(node, Fields):
        refuse(node, ("parameters",), "path")
    return node


def _location(end: Node) -> str | None:
    """Of an end that is a model as it lies."""
    if isinstance(end, Fields) and end.fields.keys() <= {"model", "label"}:
        end = end.fields["model"].node if "model" in end.fields else end
    return end.text if isinstance(end, Scalar) else None


def _along(fields: Fields) -> str:
    node = fields.get("along")
    along = "line" if node is None else node.as_text("along")
    if along not in _METHODS:
        raise fields.place_of("along").error(f"along is {along!r}; allowed: line, arc")
    return along


def _points(fields: Fields) -> int:
    def fits(value: float) -> bool:
        return 2 <= value <= MAX_POINTS and value.is_integer()  # noqa: PLR2004 - both ends

    points = number(fields, "points", fits, f"a whole number, 2 to {MAX_POINTS}")
    return POINTS if points is None else int(points)


def _line(first: Node, last: Node) -> dict[str, Node]:
    models = (_weighted(first, f"1 - ${AXIS}"), _weighted(last, f"${AXIS}"))
    return {"models": Items(first.place, models)}


def _arc(first: Node, last: Node) -> dict[str, Node]:
    knobs = Fields(first.place, keyed({"t": word(f"${AXIS}", first.place)}))
    return {"base_model": first, "models": Items(last.place, (last,)), "parameters": knobs}


def _weighted(model: Node, weight: str) -> Fields:
    place = model.place
    entry = model.fields if isinstance(model, Fields) else keyed({"model": model})
    knobs = Fields(place, keyed({"weight": word(weight, place)}))
    return Fields(place, {**entry, **keyed({"parameters": knobs})})
