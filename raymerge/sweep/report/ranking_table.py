"""The table of all trials: what each came to, what it scored, with which values, at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raymerge.sweep.record import Evaluated
from raymerge.sweep.report.ranking import Board, Ranked
from raymerge.sweep.report.scales import shown
from raymerge.sweep.trial import Value
from raymerge.units import format_bytes

_NONE = "\N{EN DASH}"
_REMOVED = ", removed"


@dataclass(frozen=True, slots=True)
class Cell:
    """A field of the table."""

    text: str
    sort: str = ""
    """The number that it is sorted by; empty sorts by the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trial of the table."""

    trial: Ranked
    number: str
    """Its rank; a dash where it failed, and stands below those that are ranked."""
    words: str
    """What it came to."""
    bar: float | None
    """How long the bar beside its score is, of 100."""
    score: Cell
    cells: tuple[Cell, ...]
    """By column after the outcome."""
    misses: tuple[str, ...]
    """Gates, by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingTable:
    """Columns and rows."""

    columns: tuple[tuple[str, str], ...]
    """Those after the outcome: what they are of, and their name."""
    rows: tuple[Row, ...]


def ranking_table(board: Board) -> RankingTable:
    """All there is to say of the trials, in the order of their ranks."""
    columns = [("task", task) for task in board.tasks]
    columns += [("final", task) for task in board.final_tasks]
    columns += [("axis", axis) for axis in board.axes]
    columns += [("of", "examples")] if board.has_subsets else []
    columns += [("cost", "merge"), ("cost", "evaluation"), ("cost", "read"), ("cost", "written")]
    scores = [trial.record.score for trial in board.scored if trial.record.score is not None]
    low, high = min(scores, default=0.0), max(scores, default=0.0)

    def bar(score: float | None) -> float | None:
        """From a fifth on, so that the worst has one too."""
        if score is None or low == high:
            return None
        return round(20 + 80 * (score - low) / (high - low), 1)

    return RankingTable(
        columns=tuple(columns),
        rows=tuple(
            Row(
                trial=trial,
                number=_NONE if trial.kind == "failed" else str(trial.rank),
                words=board.words(trial.kind) + _REMOVED * (trial.record.state == "removed"),
                bar=bar(trial.record.score),
                score=_number(trial.record.score),
                cells=tuple(_cells(board, trial)),
                misses=board.misses(trial),
            )
            for trial in board.trials
        ),
    )


def _cells(board: Board, trial: Ranked) -> Iterator[Cell]:
    record = trial.record
    yield from _by_name(board.tasks, trial.scores)
    yield from _by_name(board.final_tasks, trial.final)
    yield from _by_name(board.axes, record.values)
    if board.has_subsets:
        yield _examples(record.shown("search"))
    for seconds in (record.seconds, trial.evaluation_seconds):
        yield Cell(f"{seconds:.4g} s", str(seconds))
    for size in (record.bytes_read, record.bytes_written):
        yield Cell(format_bytes(size), str(size))


def _by_name(names: tuple[str, ...], values: Mapping[str, Value]) -> Iterator[Cell]:
    for name in names:
        yield _number(values.get(name))


def _examples(evaluated: Evaluated | None) -> Cell:
    if evaluated is None:
        return _number(None)
    return Cell("all", "inf") if evaluated.subset is None else _number(evaluated.subset)


def _number(value: Value | None) -> Cell:
    if value is None:
        return Cell(_NONE, "-inf")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(value), str(value) if is_number else "")
