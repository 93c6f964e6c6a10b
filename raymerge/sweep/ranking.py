"""A sweep's records as a table for people, the best trial first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raymerge.plan.columns import columns
from raymerge.sweep.record import Evaluated, TrialRecord

_MAX_ERROR = 160


def by_rank(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Ranked ones first, by rank; the others stay in order."""
    return sorted(records, key=lambda one: (one.rank is None, one.rank or 0))


def table(records: Sequence[TrialRecord]) -> Iterator[str]:
    """Lines of a table: rank, scores by task, examples, state, gates missed; then what failed.

    Args:
        records: Of a sweep.
    """
    best = by_rank(records)
    if not any(one.evaluations for one in best):
        yield from columns([(one.name, one.state, _short(one.error or one.out)) for one in best])
        return
    yield from columns(_rows(best))
    for one in best:
        if one.error is not None:
            yield f"{one.name}: {_short(one.error)}"


def _rows(best: Sequence[TrialRecord]) -> Iterator[tuple[str, ...]]:
    searched = [one.shown("search") for one in best]
    reported = [one.shown("final") for one in best]
    tasks, after = _tasks(searched), _tasks(reported)
    finals = [f"final {task}" for task in after]
    yield "rank", "trial", "score", *tasks, *finals, "on", "state", "gates missed"
    for one, last, final in zip(best, searched, reported, strict=True):
        yield (
            "-" if one.rank is None else str(one.rank),
            one.name,
            _shown(one.score),
            *(_score(last, task) for task in tasks),
            *(_score(final, task) for task in after),
            _examples(last),
            one.state,
            "; ".join(one.missed) or "-",
        )


def num_trials(number: int) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} trial{'' if number == 1 else 's'}"


def evaluated_line(one: Evaluated) -> str:
    """One evaluation, as it ends."""
    what = " ".join(f"{task} {score:.4g}" for task, score in one.scores.items())
    split = "" if one.split == "search" else f" {one.split}"
    return f"{one.trial}  evaluated{split} on {_examples(one)}  {_short(one.error or what)}"


def _tasks(evaluations: Iterable[Evaluated | None]) -> list[str]:
    found: dict[str, None] = {}
    for one in evaluations:
        found |= dict.fromkeys(one.scores) if one else {}
    return list(found)


def _score(one: Evaluated | None, task: str) -> str:
    return _shown(one.scores.get(task) if one else None)


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.4g}"


def _examples(one: Evaluated | None) -> str:
    return "-" if one is None else "all" if one.subset is None else str(one.subset)


def _short(text: str) -> str:
    """On one line, and of a traceback what it ends with: that names the error."""
    before, traceback, calls = text.partition("Traceback (most recent call last):")
    if traceback:
        *_, error = calls.strip().split("\n")
        text = f"{before} {error}"
    line = " ".join(text.split())
    return line if len(line) <= _MAX_ERROR else f"{line[:_MAX_ERROR]}..."
