"""What each source is called.

Random draws are keyed by a source's label, so that moving a model to a bucket drops the same
entries. A label is therefore the last component of the location and nothing of where that lies;
only where two sources would share one does the parent folder's name come in front, and failing that
the position behind. A model with an adapter is called `model+adapter`, by the same rules.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymerge.recipe.document import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A source that needs a label."""

    location: str
    label: str | None
    """As given in the recipe."""
    place: Place
    adapter: str | None = None
    """Location of a LoRA adapter that is added to it."""


def assign_labels(sources: Sequence[Named]) -> tuple[str, ...]:
    """One label per source, no two equal.

    Raises:
        RecipeError: Two labels given in the recipe are equal, or one is what another source gets.
    """
    choices = [_choices(source, position) for position, source in enumerate(sources, start=1)]
    labels = [candidates[0] for candidates in choices]
    for step in (1, 2):
        taken = Counter(labels)
        for index, candidates in enumerate(choices):
            if taken[labels[index]] > 1 and sources[index].label is None:
                labels[index] = candidates[step]
    _check_distinct(sources, labels)
    return tuple(labels)


def _choices(source: Named, position: int) -> tuple[str, ...]:
    if source.label is not None:
        return (source.label,)
    locations = [source.location, *([source.adapter] if source.adapter else [])]
    last, nested = ("+".join(_ending(one, number) for one in locations) for number in (1, 2))
    return last, nested, f"{nested}#{position}"


def _ending(location: str, number: int) -> str:
    """The last components of a location."""
    parts = [part for part in os.path.normpath(location).split("/") if part]
    return "/".join(parts[-number:]) or location


def _check_distinct(sources: Sequence[Named], labels: Sequence[str]) -> None:
    first: dict[str, Named] = {}
    for source, label in zip(sources, labels, strict=True):
        twin = first.setdefault(label, source)
        if twin is not source:
            raise source.place.error(
                f"label: {label!r} is also the label of {twin.location!r} on line "
                f"{twin.place.line}; choose another"
            )
