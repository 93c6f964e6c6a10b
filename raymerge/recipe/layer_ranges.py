"""The `layer_range` of a slice's sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymerge.recipe.document import Fields, Items, Node, Place, Scalar
from raymerge.recipe.section import LayerRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymerge.recipe.sources import Identity, Listed


def read_ranges(fields: Fields, models: Sequence[Listed]) -> dict[Identity, LayerRange]:
    """The range of each of a slice's sources, all of one length.

    Raises:
        RecipeError: None, one that no model can have, or lengths that differ.
    """
    listed = fields.get("sources")
    assert isinstance(listed, Items)
    ranges: dict[Identity, LayerRange] = {}
    for model, entry in zip(models, listed.items, strict=True):
        found = _read_range(entry)
        first = next(iter(ranges.values()), found)
        if len(found) != len(first):
            raise Place(entry.place.path, found.line).error(
                f"layer_range: {len(found)} layers, and {len(first)} in the one on line "
                f"{first.line}; all sources of a slice give the same number"
            )
        ranges[model.identity] = found
    return ranges


def _read_range(entry: Node) -> LayerRange:
    node = entry.get("layer_range") if isinstance(entry, Fields) else None
    if node is None:
        raise entry.place.error(
            "layer_range: missing; a source of a slice needs the layers to take, such as "
            "layer_range: [0, 16] for the first sixteen"
        )
    bounds = _bounds(node)
    if bounds is None:
        raise node.place.error(
            f"layer_range is {_shown(node)}; allowed: two whole numbers from 0, "
            "[first layer, one past the last]"
        )
    start, stop = bounds
    if start >= stop:
        turned = f" Did you mean [{stop}, {start}]?" if start > stop else ""
        raise node.place.error(
            f"layer_range is [{start}, {stop}], which holds no layer; it is [first layer, one past "
            f"the last].{turned}"
        )
    return LayerRange(start, stop, node.place.line)


def _bounds(node: Node) -> tuple[int, int] | None:
    items = node.items if isinstance(node, Items) else ()
    numbers = [item.value for item in items if isinstance(item, Scalar)]
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    if not len(whole) == len(items) == len(("start", "stop")):
        return None
    return whole[0], whole[1]


def _shown(node: Node) -> str:
    if not isinstance(node, Items):
        return node.shown
    return f"[{', '.join(item.shown for item in node.items)}]"
