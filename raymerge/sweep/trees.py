"""Parts of a recipe's tree that a ready sweep puts in, each with the place it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymerge.recipe.document import Field, Fields, Node, Place, Scalar


def word(text: str, place: Place) -> Scalar:
    """A word of a recipe."""
    return Scalar(place, text, text, quoted=False)


def keyed(nodes: Mapping[str, Node]) -> dict[str, Field]:
    """Fields that stand where their values do."""
    return {key: Field(node.place, node) for key, node in nodes.items()}


def refuse(top: Fields, keys: Sequence[str], block: str) -> None:
    """Raise RecipeError where a recipe has a key that a ready sweep decides."""
    for key in keys:
        if key in top.fields:
            raise top.place_of(key).error(f"{key}: {block} says what is merged; leave it out")
