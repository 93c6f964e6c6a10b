"""What travels to a worker once, and what it sends back. Small, frozen, picklable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.plan.memory import Budget
from raymerge.plan.stages import Terms, terms
from raymerge.runtime.preflight import Nonce
from raymerge.runtime.readers import OpenSource, open_planned
from raymerge.storage.store import Access


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

    def under(self, terms: Terms) -> RunSettings:
        """The settings of one stage of the run."""
        sources = tuple(
            replace(source, label=label)
            for source, label in zip(self.sources, terms.labels, strict=True)
        )
        return replace(self, sources=sources, seed=terms.seed, nan=terms.nan, stage=terms.name)


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
    # A stage is a source to others: nothing of it is stored.
    results = (
        PlannedSource(
            label=stage.name, location="", revision=None, pins={}, side_files=(), tensor_bytes=0
        )
        for stage in plan.stages
    )
    whole = replace(
        settings,
        sources=(*plan.sources, *results),
        stages=tuple(terms(stage.recipe, plan.recipe, plan.sources) for stage in plan.stages),
    )
    return whole.under(terms(plan.recipe, plan.recipe, plan.sources))


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
