"""What the keys of a sweep block say about evaluation, once they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymerge.recipe.document import Place
from raymerge.sweep.record import Split


@dataclass(frozen=True, slots=True)
class Command:
    """A program that prints scores as JSON."""

    arguments: tuple[str, ...]
    """With `{checkpoint}`, `{subset}` and `{split}` still in them; no shell reads them."""


@dataclass(frozen=True, slots=True)
class Function:
    """A Python function, called in a process of its own."""

    target: str
    """`module:function`, or `path/to/file.py:function`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """lm-evaluation-harness, run in a process of its own."""

    tasks: tuple[str, ...]
    metrics: Mapping[str, str]
    """The metric of a task, where it is not the usual one: `acc`, or `exact_match,strict-match`."""
    limit: int | None
    """Examples per task, from the first on; None for all."""
    options: Mapping[str, int | float | str | bool]
    """Further arguments of its `simple_evaluate`: num_fewshot, batch_size, device and so on."""
    model_args: Mapping[str, int | float | str | bool]
    """Arguments of its model class, beside the checkpoint's path."""


Evaluator = Command | Function | Harness


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A gate set by what a source scores."""

    of: str
    """The source's label."""
    minus: float
    """How far below it a trial may stay."""
    place: Place
    """Where the recipe says so."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Rank by the mean over tasks."""

    tasks: tuple[str, ...] = ()
    """Those that the recipe names; none for all that are scored, the same ones of every trial."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """Rank by a weighted sum over tasks; a single task has weight 1."""

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Pareto:
    """Rank by fronts: first what no other trial beats in one of these tasks for free."""

    tasks: tuple[str, ...]


By = Mean | Weighted | Pareto


@dataclass(frozen=True, slots=True)
class Rungs:
    """Examples in rising numbers, each the first of the next; all of them come last."""

    sizes: tuple[int, ...]
    go_on: float
    """Which part of the trials of a rung goes on to the next, above 0 and below 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluating:
    """How the trials of a sweep are evaluated and chosen."""

    evaluator: Evaluator | None
    limit_s: float
    """After which an evaluation is stopped, with all that it started."""
    cpus: float | None
    """What one evaluation reserves of a Ray cluster; None reserves nothing."""
    gpus: float
    tasks: tuple[str, ...]
    """What every evaluation has to score: those named, and those that gates and `by` use."""
    gates: Mapping[str, float]
    """The least that a kept trial scores, by task."""
    at_least: Mapping[str, AtLeast]
    by: By
    keep: int | None
    """How many trials keep their weights; None for all that clear the gates, or the front."""
    rungs: Rungs | None
    splits: Mapping[Split, str] | None
    """What the evaluator calls the examples of each; None where the sweep has one set of them."""
    scratch: str | None
    """Where candidates lie until they are kept; None for their own places."""

    @property
    def sources(self) -> dict[str, Place]:
        """Labels of the sources that are evaluated once each for the gates; where each stands."""
        return {gate.of: gate.place for gate in self.at_least.values()}

    @property
    def subsets(self) -> tuple[int | None, ...]:
        """Numbers of examples in the order in which a trial meets them; None, for all, is last."""
        return (*(self.rungs.sizes if self.rungs else ()), None)

    def split_word(self, split: Split) -> str:
        """What the evaluator is told of a split."""
        return self.splits[split] if self.splits else split
