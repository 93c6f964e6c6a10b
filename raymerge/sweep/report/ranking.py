"""Trials in the order of the report, and what each is shown as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.report.marks import Dot, Shape

Kind = Literal["kept", "cleared", "missed", "stopped", "unscored", "failed"]
KINDS: Mapping[Kind, tuple[str, Shape]] = {
    "kept": ("kept", "disc"),
    "cleared": ("clears the gates", "ring"),
    "missed": ("misses a gate", "diamond"),
    "stopped": ("stopped early", "cross"),
    "unscored": ("without a score", "cross"),
    "failed": ("failed", "cross"),
}
"""What a trial came to, in words and as a point: shapes differ, so that colours need not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A trial, and the scores that it is shown with."""

    rank: int
    """From 1 on."""
    record: TrialRecord
    kind: Kind
    scores: Mapping[str, float]
    """Of its evaluation on the most examples, by task."""
    final: Mapping[str, float]
    """On the examples kept for the report."""
    error: str | None
    """Why it was not merged, or not evaluated."""

    @property
    def evaluation_seconds(self) -> float:
        """Of all its evaluations."""
        return sum(one.seconds for one in self.record.evaluations)

    def dot(self, x: float, y: float, tip: str, *, small: bool) -> Dot:
        """Its point in a chart."""
        return Dot(
            x=x,
            y=y,
            colour=colour_of(self.kind),
            shape=KINDS[self.kind][1],
            radius=(5.5 if self.kind == "kept" else 4.5) - small,
            trial=self.rank,
            tip=f"#{self.rank}: {tip}",
        )


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that trials are compared by."""

    name: str
    task: str | None
    """None for the score."""

    @property
    def title(self) -> str:
        """At the beginning of a title; a task is written as it is."""
        return self.name.capitalize() if self.task is None else self.name

    def of(self, trial: Ranked) -> float | None:
        """How good a trial is."""
        return trial.record.score if self.task is None else trial.scores.get(self.task)

    def pairs(self, trials: Iterable[Ranked]) -> list[tuple[Ranked, float]]:
        """The trials that have it, with it."""
        found = ((trial, self.of(trial)) for trial in trials)
        return [(trial, value) for trial, value in found if value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """All trials, best first, and what there is to show of them."""

    trials: tuple[Ranked, ...]
    axes: tuple[str, ...]
    tasks: tuple[str, ...]
    """That any trial has a score for."""
    final_tasks: tuple[str, ...]
    gates: Mapping[str, float]
    """The least that a kept trial scores, by task, as far as it is known."""
    by_fronts: bool
    """Whether ranks go by fronts over tasks, so that a score says only on which one a trial is."""

    @property
    def scored(self) -> tuple[Ranked, ...]:
        """The trials that have what they are ranked by."""
        return tuple(trial for trial in self.trials if trial.record.score is not None)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What trials are compared by: their score, or each task where fronts rank."""
        if self.by_fronts:
            return tuple(Measure(task, task) for task in self.tasks)
        return (Measure("score", None),)

    @property
    def has_gates(self) -> bool:
        """Whether anything could be missed."""
        return bool(self.gates) or any(trial.record.missed for trial in self.trials)

    @property
    def has_subsets(self) -> bool:
        """Whether trials were evaluated on some of the examples first."""
        found = (one for trial in self.trials for one in trial.record.evaluations)
        return any(one.subset is not None for one in found)

    def words(self, kind: Kind) -> str:
        """What a trial came to."""
        if kind == "cleared" and not self.has_gates:
            return "scored"
        if kind == "unscored" and not self.tasks:
            return "merged"
        return KINDS[kind][0]

    def misses(self, trial: Ranked) -> tuple[str, ...]:
        """The gates, by task, that a trial does not clear."""
        least = float("-inf")
        return tuple(
            task
            for task, gate in self.gates.items()
            if trial.scores and trial.scores.get(task, least) < gate
        )


def colour_of(kind: Kind) -> str:
    """The name of its colour."""
    return "stopped" if kind == "unscored" else kind


def make_board(
    records: Sequence[TrialRecord], gates: Mapping[str, float], *, by_fronts: bool = False
) -> Board:
    """Put trials in order: by rank; those without one by what they came to, then by score."""
    found = [_ranked(record) for record in records]
    order = {kind: number for number, kind in enumerate(KINDS)} | {"cleared": 0}

    def key(trial: tuple[TrialRecord, Kind, Evaluated | None]) -> tuple[float, int, float]:
        record, kind, _ = trial
        rank = float("inf") if record.rank is None else record.rank
        return rank, order[kind], 0.0 if record.score is None else -record.score

    trials = []
    for rank, (record, kind, shown) in enumerate(sorted(found, key=key), start=1):
        final = record.shown("final")
        failed = next((one.error for one in record.evaluations if one.error), None)
        trials.append(
            Ranked(
                rank=rank,
                record=record,
                kind=kind,
                scores=shown.scores if shown else {},
                final=final.scores if final else {},
                error=record.error or failed,
            )
        )
    return Board(
        trials=tuple(trials),
        axes=_union(record.values for record in records),
        tasks=_union(trial.scores for trial in trials),
        final_tasks=_union(trial.final for trial in trials),
        gates=gates,
        by_fronts=by_fronts,
    )


def _ranked(record: TrialRecord) -> tuple[TrialRecord, Kind, Evaluated | None]:
    shown = record.shown("search")
    return record, _kind(record, shown), shown


def _kind(record: TrialRecord, shown: Evaluated | None) -> Kind:
    if record.state == "failed":
        return "failed"
    if record.missed:
        return "missed"
    if record.state == "kept":
        return "kept"
    if shown is not None and shown.subset is not None:
        return "stopped"
    return "unscored" if record.score is None else "cleared"


def _union(mappings: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for mapping in mappings for key in mapping))
