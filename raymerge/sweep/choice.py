"""Which trials of a sweep are kept, and in which order they come. Pure.

evaluations of a trial -> how far it has come, its scores -> gates that it misses, its score
all trials             -> ranks: those evaluated on all examples, those stopped early, those failed
ranks                  -> the kept ones
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import fmean

from raymerge.recipe.wording import listed
from raymerge.sweep.evaluation import Evaluating, Mean, Pareto, Weighted
from raymerge.sweep.evaluation.scores import lacking
from raymerge.sweep.record import Evaluated, Split, TrialRecord

Floors = Mapping[str, Mapping[str, float]]
"""What sources score: by label and task."""
TieBreak = Callable[[TrialRecord], int]
SOURCE = "source:"
"""Before the label of a source that was evaluated, where the name of a trial may stand."""


def judged(
    records: Sequence[TrialRecord], evaluating: Evaluating, floors: Floors
) -> list[TrialRecord]:
    """The records in their order, with what their evaluations come to.

    A trial is judged by the evaluation on the most examples that it came to. One that failed in an
    evaluation has failed.

    Args:
        records: Of all trials so far.
        evaluating: How they were evaluated.
        floors: Scores of the sources that gates compare with.
    """
    usual = _usual_tasks(records, evaluating)
    found = [_judged(record, evaluating, floors, usual) for record in records]
    if isinstance(evaluating.by, Pareto):
        fronts = {
            one.record.name: float(-front)
            for tier in _tiers(found, evaluating)
            for front, some in enumerate(_fronts(tier, evaluating.by))
            for one in some
        }
        return [replace(record, score=fronts.get(record.name)) for record in found]
    return found


def ranked(
    records: Sequence[TrialRecord],
    evaluating: Evaluating,
    tie_break: TieBreak = lambda _: 0,
) -> list[TrialRecord]:
    """Judged records, the best first, each with its rank; those that failed last, without one.

    Evaluated on more examples comes before fewer, gates cleared before gates missed, then the
    better score.

    Args:
        records: All that are ranked among each other.
        evaluating: How they were evaluated.
        tie_break: Of equal scores the one comes first for which this is least; where it is equal,
            too, they stay in order.
    """
    tiers = _tiers(records, evaluating)
    placed = (one for tier in tiers for one in _sorted(tier, evaluating, tie_break))
    best = [replace(one.record, rank=rank) for rank, one in enumerate(placed, start=1)]
    names = {record.name for record in best}
    return [*best, *(replace(one, rank=None) for one in records if one.name not in names)]


def chosen(best: Sequence[TrialRecord], evaluating: Evaluating) -> list[TrialRecord]:
    """Of ranked records those that are kept: evaluated on all examples, no gate missed."""
    fit = [one for one in best if not one.missed and _has_finished(one, evaluating)]
    if evaluating.keep is not None:
        return fit[: evaluating.keep]
    return [one for one in fit if not isinstance(evaluating.by, Pareto) or one.score == 0]


def going_on(
    records: Sequence[TrialRecord], evaluating: Evaluating, floors: Floors, subset: int
) -> list[str]:
    """Names of the trials that are evaluated on more examples than a subset.

    The best part goes on, in the order given, and never fewer than are to be kept. Only what is
    known from this subset counts: a sweep that was killed later on decides as it did.
    """
    assert evaluating.rungs is not None
    until = evaluating.subsets[: evaluating.subsets.index(subset) + 1]
    before = [
        replace(one, evaluations=tuple(each for each in one.evaluations if each.subset in until))
        for one in records
    ]
    best = ranked(judged(before, evaluating, floors), evaluating)
    there = [one.name for one in best if _examples(one, evaluating) == subset]
    number = max(ceil(evaluating.rungs.go_on * len(there)), evaluating.keep or 1)
    chosen_ones = set(there[:number])
    return [one.name for one in records if one.name in chosen_ones]


def newest(record: TrialRecord, split: Split, subset: int | None) -> Evaluated | None:
    """The newest evaluation of a trial on a split and a subset."""
    wanted = (split, subset)
    return next((one for one in record.evaluations if (one.split, one.subset) == wanted), None)


def counts(evaluated: Evaluated | None, evaluating: Evaluating) -> bool:
    """Whether an evaluation was made and has all scores, so that it need not be made again."""
    if evaluated is None or not evaluated.scores:
        return False
    return set(evaluating.tasks) <= evaluated.scores.keys()


def reached(record: TrialRecord, evaluating: Evaluating) -> Evaluated | None:
    """The evaluation that it is judged by: the last on its way through the subsets, with scores.

    None where there is none, or one of them failed.
    """
    last = None
    for subset in evaluating.subsets:
        found = newest(record, "search", subset)
        if found is None:
            break
        if not counts(found, evaluating):
            return None
        last = found
    return last


def failure(record: TrialRecord, evaluating: Evaluating) -> str | None:
    """What went wrong where a trial was evaluated; None where nothing did."""
    for subset in evaluating.subsets:
        found = newest(record, "search", subset)
        if found is None:
            return None
        if not counts(found, evaluating):
            return f"evaluation {examples(subset)}: {_why(found, evaluating)}"
    return None


def failure_of_final(record: TrialRecord, evaluating: Evaluating) -> str | None:
    """What went wrong where a kept trial was evaluated for the report."""
    found = newest(record, "final", None)
    if found is None or counts(found, evaluating):
        return None
    return f"evaluation for the report: {_why(found, evaluating)}"


def _why(evaluated: Evaluated, evaluating: Evaluating) -> str | None:
    """Why an evaluation does not count, by the tasks that are asked for now."""
    lacks = lacking(evaluated.scores, evaluating.tasks) if evaluated.scores else None
    return lacks or evaluated.error


def examples(subset: int | None) -> str:
    """How a message speaks of a subset."""
    return "on all examples" if subset is None else f"on {subset} examples"


def least_scores(evaluating: Evaluating, floors: Floors) -> dict[str, float]:
    """The least that a kept trial scores, by task, whichever kind of gate says so."""
    least = dict(evaluating.gates)
    for task, gate in evaluating.at_least.items():
        floor = floors[gate.of][task] - gate.minus
        least[task] = max(floor, least.get(task, floor))
    return least


def missed_gates(
    scores: Mapping[str, float], evaluating: Evaluating, floors: Floors
) -> tuple[str, ...]:
    """The gates that scores do not clear, in words."""
    words = [
        f"{task} {scores[task]:.4g} is below {least:.4g}"
        for task, least in evaluating.gates.items()
        if scores[task] < least
    ]
    for task, gate in evaluating.at_least.items():
        least = floors[gate.of][task] - gate.minus
        if scores[task] < least:
            less = f" less {gate.minus:.4g}" if gate.minus else ""
            words.append(
                f"{task} {scores[task]:.4g} is below {least:.4g}, what {gate.of} scores{less}"
            )
    return tuple(words)


def scalar(scores: Mapping[str, float], evaluating: Evaluating) -> float | None:
    """The one number that scores come to; None where fronts rank."""
    by = evaluating.by
    if isinstance(by, Mean):
        return fmean(scores[task] for task in by.tasks or scores)
    if isinstance(by, Weighted):
        return sum(weight * scores[task] for task, weight in by.weights.items())
    return None


def _usual_tasks(
    records: Iterable[TrialRecord], evaluating: Evaluating
) -> dict[int | None, frozenset[str]]:
    """The tasks that most trials score, by the subset that they came to; of equally many the more.

    Empty where not all tasks count.
    """
    if not isinstance(evaluating.by, Mean) or evaluating.by.tasks:
        return {}
    counted: dict[int | None, Counter[frozenset[str]]] = {}
    for record in records:
        if (last := reached(record, evaluating)) is not None:
            counted.setdefault(last.subset, Counter())[frozenset(last.scores)] += 1
    found = {}
    for subset, counter in counted.items():
        most = max(counter.values())
        found[subset] = max((one for one in counter if counter[one] == most), key=len)
    return found


def _judged(
    record: TrialRecord,
    evaluating: Evaluating,
    floors: Floors,
    usual: Mapping[int | None, frozenset[str]],
) -> TrialRecord:
    if not record.digest:
        return record  # it was not merged
    last = reached(record, evaluating)
    error = failure(record, evaluating)
    if last is not None and (tasks := usual.get(last.subset, last.scores.keys())) != (
        last.scores.keys()
    ):
        error = (
            f"evaluation {examples(last.subset)}: it has scores for {listed(last.scores)} and "
            f"other trials for {listed(tasks)}: a mean of others says nothing; name what counts "
            "under evaluate, tasks: [a task, a task]"
        )
    if error is not None:
        return replace(record, state="failed", error=error, missed=(), score=None)
    state = "merged" if record.state == "failed" else record.state
    if last is None:
        return replace(record, state=state, error=None, missed=(), score=None)
    return replace(
        record,
        state=state,
        error=None,
        missed=missed_gates(last.scores, evaluating, floors),
        score=scalar(last.scores, evaluating),
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    """A trial that is ranked, and the scores that rank it."""

    record: TrialRecord
    scores: Mapping[str, float]


def _has_finished(record: TrialRecord, evaluating: Evaluating) -> bool:
    last = reached(record, evaluating)
    return record.state != "failed" and last is not None and last.subset is None


def _examples(record: TrialRecord, evaluating: Evaluating) -> int | None:
    """Of how many examples its last evaluation was; 0 without one, None for all."""
    last = None if record.state == "failed" else reached(record, evaluating)
    return 0 if last is None else last.subset


def _tiers(records: Iterable[TrialRecord], evaluating: Evaluating) -> list[list[_Placed]]:
    """Trials that their scores rank among each other, the best tier first."""
    found: dict[tuple[float, bool], list[_Placed]] = {}
    for record in records:
        last = None if record.state == "failed" else reached(record, evaluating)
        if last is not None:
            size = inf if last.subset is None else last.subset
            tier = found.setdefault((-size, bool(record.missed)), [])
            tier.append(_Placed(record, last.scores))
    return [found[key] for key in sorted(found)]


def _sorted(tier: Sequence[_Placed], evaluating: Evaluating, tie_break: TieBreak) -> list[_Placed]:
    by = evaluating.by
    if not isinstance(by, Pareto):
        return sorted(tier, key=lambda one: (-(one.record.score or 0.0), tie_break(one.record)))
    return [one for front in _fronts(tier, by) for one in _spread(front, by)]


def _fronts(tier: Sequence[_Placed], by: Pareto) -> list[list[_Placed]]:
    """First those that no other beats in one task without losing in another, then the next."""
    fronts = []
    left = list(tier)
    while left:
        front = [
            one
            for one in left
            if not any(beats(other.scores, one.scores, by.tasks) for other in left)
        ]
        fronts.append(front)
        names = {one.record.name for one in front}
        left = [one for one in left if one.record.name not in names]
    return fronts


def beats(one: Mapping[str, float], other: Mapping[str, float], tasks: Iterable[str]) -> bool:
    """Whether scores are better in one of these tasks, and worse in none."""
    pairs = [(one[task], other[task]) for task in tasks]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _spread(front: Sequence[_Placed], by: Pareto) -> list[_Placed]:
    """A front, those first that have the fewest neighbours (Deb et al. 2002, crowding distance)."""
    room = dict.fromkeys((one.record.name for one in front), 0.0)
    for task in by.tasks:
        line = sorted(front, key=lambda one: one.scores[task])
        width = line[-1].scores[task] - line[0].scores[task]
        room[line[0].record.name] = room[line[-1].record.name] = inf
        if width:
            for below, one, above in zip(line, line[1:], line[2:], strict=False):
                room[one.record.name] += (above.scores[task] - below.scores[task]) / width
    return sorted(front, key=lambda one: -room[one.record.name])
