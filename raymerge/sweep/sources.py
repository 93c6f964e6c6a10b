"""The sources of a sweep: whether they are what they were, and what those score that gates name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.errors import PlanError, RaymergeError
from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.recipe import SourceRef
from raymerge.recipe.document import Place
from raymerge.recipe.wording import did_you_mean, listed
from raymerge.sweep.evaluation.scores import lacking
from raymerge.sweep.record import Evaluated
from raymerge.sweep.trial import Trial
from raymerge.tokenizer.files import TOKENIZER_FILES


class Sources:
    """What sources are now, so that trials of others are not taken for theirs.

    Args:
        plan: Plans a trial.
    """

    def __init__(self, plan: Callable[[Trial], Plan]) -> None:
        self._plan = plan
        self._now: dict[str, str | None] = {}
        """By location; None where it cannot be planned any more."""

    def check(self, trial: Trial, before: Mapping[str, str]) -> None:
        """Raise PlanError if a source is not what it was.

        One trial is planned for every source that is new, not every trial. What cannot be planned
        any more is left alone: what was made of it is still what it was.

        Args:
            trial: That was merged once.
            before: `identities` of its plan then.
        """
        if not before.keys() <= self._now.keys():
            self._now |= dict.fromkeys(before.keys() - self._now.keys())
            with suppress(RaymergeError):
                self._now |= identities(self._plan(trial))
        for where, identity in before.items():
            if self._now[where] not in {None, identity}:
                raise PlanError(
                    f"{where} was written again since {trial.name} was merged from it, so that "
                    "trials of this sweep could not be compared. --overwrite makes every trial "
                    "again; another OUT leaves these as they are",
                    source=where,
                )

    def digest_of(self, source: SourceRef, trials: Iterable[Trial]) -> str | None:
        """What names a source as it is now; None where no trial of it can be planned."""
        for trial in trials:
            with suppress(RaymergeError):
                for planned in self._plan(trial).merged:
                    if planned.label == source.label:
                        return f"{source.location} {_identity_of(planned)}"
        return None


def identities(plan: Plan) -> dict[str, str]:
    """What each source of a plan is, by location: 16 hex digits, equal as long as it stays so.

    Its weights, config and tokenizer count; what else lies beside them may come and go.
    """
    return {_where(source): _identity_of(source) for source in plan.sources}


def _identity_of(source: PlannedSource) -> str:
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
