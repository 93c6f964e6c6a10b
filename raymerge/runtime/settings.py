"""What travels to a worker once, and what it sends back. Small, frozen, picklable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal

from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.plan.memory import Budget
from raymerge.plan.stages import Terms, terms
from raymerge.runtime.preflight import Nonce
from raymerge.runtime.readers import OpenSource, open_planned
from raymerge.storage.store import Access
from raymerge.storage.urls import whole


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """What a run of several trials has to know of one of them."""

    units_at: str
    """Path or URL of the place where its units are written."""
    seed: int
    nan: Literal["error", "pass"]
    labels: tuple[str, ...]
    """What it calls each of the run's sources."""
    nonce: Nonce | None
    """What every process of the run has to find in its destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every worker of a run has to know besides its units."""

    sources: tuple[PlannedSource, ...]
    """As messages and draws call them; behind the plan's sources stand its stages."""
    units_at: str
    """Path or URL of the place where units are written."""
    seed: int
    nan: Literal["error", "pass"]
    budget: Budget
    device: Literal["cpu", "cuda"]
    access: Access = field(default_factory=Access)
    """How storage is reached."""
    open_source: OpenSource = open_planned
    """Gives the folder of a source, in every worker."""
    nonce: Nonce | None = None
    """What every process of the run has to find in the destination."""
    stage: str | None = None
    """The stage that these are the settings of; None of the one that is written."""
    stages: tuple[Terms, ...] = ()
    """Of the stages inside the recipe."""
    trials: tuple[TrialSettings, ...] = ()
    """Of a run that merges several plans at once. What is said of one above is the first one's."""

    def of_trial(self, position: int) -> RunSettings:
        """The settings of one trial of the run."""
        trial = self.trials[position]
        return replace(
            self,
            sources=_relabelled(self.sources, trial.labels),
            units_at=trial.units_at,
            seed=trial.seed,
            nan=trial.nan,
            nonce=trial.nonce,
            trials=(),
        )

    @property
    def stored(self) -> tuple[PlannedSource, ...]:
        """The sources that are no stages."""
        return tuple(source for source in self.sources if source.location)

    @property
    def places(self) -> tuple[str, ...]:
        """Where units are written."""
        return tuple(trial.units_at for trial in self.trials) or (self.units_at,)

    @property
    def nonces(self) -> tuple[Nonce, ...]:
        """What every process of the run has to find."""
        found = [trial.nonce for trial in self.trials] or [self.nonce]
        return tuple(filter(None, found))

    def for_other_nodes(self) -> RunSettings:
        """The same with paths that do not depend on the folder that a process is in."""
        trials = (
            replace(trial, units_at=whole(trial.units_at), nonce=_placed(trial.nonce))
            for trial in self.trials
        )
        sources = (
            replace(source, location=source.location and whole(source.location))
            for source in self.sources
        )
        return replace(
            self,
            sources=tuple(sources),
            units_at=whole(self.units_at),
            nonce=_placed(self.nonce),
            trials=tuple(trials),
        )

    def under(self, terms: Terms) -> RunSettings:
        """The settings of one stage of the run."""
        sources = _relabelled(self.sources, terms.labels)
        return replace(self, sources=sources, seed=terms.seed, nan=terms.nan, stage=terms.name)


def _placed(nonce: Nonce | None) -> Nonce | None:
    return nonce and replace(nonce, location=whole(nonce.location))


def _relabelled(
    sources: Sequence[PlannedSource], labels: Sequence[str]
) -> tuple[PlannedSource, ...]:
    return tuple(
        replace(source, label=label) for source, label in zip(sources, labels, strict=True)
    )


def run_settings(
    plan: Plan,
    units_at: str,
    device: Literal["cpu", "cuda"],
    access: Access | None = None,
    *,
    open_source: OpenSource = open_planned,
    nonce: Nonce | None = None,
) -> RunSettings:
    """The settings of a plan whose units are written to a place."""
    settings = RunSettings(
        sources=plan.sources,
        units_at=units_at,
        access=access or Access(),
        seed=plan.recipe.seed,
        nan=plan.recipe.nan,
        budget=plan.memory.budget,
        device=device,
        open_source=open_source,
        nonce=nonce,
    )
    if not plan.stages:
        return settings
    whole = replace(
        settings,
        sources=(*plan.sources, *(stage_source(stage.name) for stage in plan.stages)),
        stages=tuple(terms(stage.recipe, plan.recipe, plan.sources) for stage in plan.stages),
    )
    return whole.under(terms(plan.recipe, plan.recipe, plan.sources))


def stage_source(name: str) -> PlannedSource:
    """A stage as a source of others: nothing of it is stored."""
    return PlannedSource(
        label=name, location="", revision=None, pins={}, side_files=(), tensor_bytes=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What was done since the last report."""

    read_bytes: int = 0
    """Of files as they are read, of remote ones when they have come."""
    written_bytes: int = 0
    retries: int = 0
    """Requests to storage that were made again."""

    def __add__(self, more: Progress) -> Progress:
        return Progress(
            read_bytes=self.read_bytes + more.read_bytes,
            written_bytes=self.written_bytes + more.written_bytes,
            retries=self.retries + more.retries,
        )


OnProgress = Callable[[Progress], None]


class Tally:
    """What was done since somebody last asked; counted on any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._moved = Progress()

    def add(self, more: Progress) -> None:
        """Count."""
        with self._lock:
            self._moved += more

    def take(self) -> Progress:
        """What was counted since the last call."""
        with self._lock:
            moved, self._moved = self._moved, Progress()
        return moved
