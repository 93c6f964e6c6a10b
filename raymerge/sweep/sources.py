"""The sources that gates compare with: where they lie, what they score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from raymerge.checkpoint.folder import Folder
from raymerge.errors import RaymergeError
from raymerge.recipe import SourceRef
from raymerge.recipe.document import Place
from raymerge.recipe.wording import did_you_mean, listed
from raymerge.sweep.evaluation.scores import lacking
from raymerge.sweep.record import Evaluated
from raymerge.sweep.trial import Trial


def identity_of(folder: Folder) -> str:
    """Equal for a folder whose files are the same: 16 hex digits of their names and pins.

    Raises:
        SourceError: A file cannot be read.
    """
    pins = [(name, folder.pin(name)) for name in sorted(folder.sizes())]
    return hashlib.sha256(repr(pins).encode()).hexdigest()[:16]


def compared(label: str, place: Place, trials: Iterable[Trial]) -> SourceRef:
    """A source that gates compare with, as its recipe has it.

    Args:
        label: Of the source.
        place: Where it stands under `at_least`.
        trials: In whose recipes it stands.

    Raises:
        RecipeError: It stands in none, is not the same in all, or is no checkpoint as it lies.
    """
    recipes = [trial.recipe for trial in trials]
    refs = [ref for recipe in recipes for ref in recipe.checkpoints]
    found = {ref.location: ref for ref in refs if ref.label == label}
    if not found:
        labels = {ref.label for ref in refs}
        hint = did_you_mean(label, labels)
        raise place.error(
            f"at_least: there is no source {label!r}; sources: {listed(labels)}.{hint}"
        )
    if len(found) > 1:
        raise place.error(
            f"at_least: {label!r} is {len(found)} sources, {' and '.join(sorted(found))}; give "
            "each a label of its own"
        )
    [ref] = found.values()
    if ref.adapter is not None:
        raise place.error(
            f"at_least: {label!r} has an adapter, and a source is evaluated as it lies; merge it "
            "first, and compare with a gate in numbers"
        )
    return ref


def floors_of(
    evaluations: Mapping[str, Iterable[Evaluated]], needed: Iterable[str]
) -> dict[str, Mapping[str, float]]:
    """What each source scores.

    Args:
        evaluations: By label.
        needed: Tasks that each has to have a score for.

    Raises:
        RaymergeError: One of them could not be evaluated.
    """
    floors = {}
    for label, found in evaluations.items():
        for one in found:
            why = lacking(one.scores, needed) if one.scores else one.error
            if why is not None:
                raise RaymergeError(
                    f"at_least: the source {label} could not be evaluated, and no trial can be "
                    f"held against it. What is merged stays. {why}",
                    source=label,
                )
            floors[label] = one.scores
    return floors
