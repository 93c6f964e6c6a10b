"""The sources that gates compare with: where they lie, what they score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.errors import RaymergeError
from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.recipe import SourceRef
from raymerge.recipe.document import Place
from raymerge.recipe.wording import did_you_mean, listed
from raymerge.sweep.evaluation.scores import lacking
from raymerge.sweep.record import Evaluated
from raymerge.sweep.trial import Trial
from raymerge.tokenizer.files import TOKENIZER_FILES


def identities(plan: Plan) -> dict[str, str]:
    """What each source of a plan is, by location: 16 hex digits, equal as long as it stays so.

    Its weights, config and tokenizer count; what else lies beside them may come and go.
    """
    return {_where(source): identity_of(source) for source in plan.sources}


def identity_of(source: PlannedSource) -> str:
    """What a source is; see `identities`."""
    beside = {
        name: pin
        for name, pin in source.side_pins.items()
        if name == CONFIG_NAME or name in TOKENIZER_FILES
    }
    pins = sorted({**source.pins, **beside}.items())
    named = [(name, pin.size_bytes, pin.tag) for name, pin in pins]
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def _where(source: PlannedSource) -> str:
    return f"{source.location}@{source.revision}" if source.revision else source.location


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
