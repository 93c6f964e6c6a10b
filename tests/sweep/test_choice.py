"""Gates, scores, ranks, rungs and what is kept: all of it pure."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.sweep.evaluation import Evaluating
from raymerge.sweep.record import Evaluated, TrialRecord
from tests.sweep.blocks import parsed

choice: Any = importlib.import_module("raymerge.sweep.choice")
EVALUATE = " evaluate: {python: 'a:b'}\n"


def evaluating(text: str = "") -> Evaluating:
    return parsed(EVALUATE + text)


def evaluated(subset: int | None = None, error: str | None = None, **scores: float) -> Evaluated:
    return Evaluated(
        trial="t", split="search", subset=subset, scores=scores, error=error, seconds=1, worker="w"
    )


def trial(name: str, *evaluations: Evaluated, state: Any = "merged", digest: str = "d") -> Any:
    return TrialRecord(
        name=name, digest=digest, values={}, seed=0, text="", out="", state=state, error=None,
        seconds=1, bytes_read=1, bytes_written=1, evaluations=evaluations, missed=(), score=None,
    )  # fmt: skip


def order(
    records: list[TrialRecord], how: Evaluating, floors: Any = None
) -> tuple[list[TrialRecord], list[str], list[str]]:
    best = choice.ranked(choice.judged(records, how, floors or {}), how)
    return best, [one.name for one in best], [one.name for one in choice.chosen(best, how)]


def test_a_gate_blocks_however_good_the_mean_is() -> None:
    how = evaluating(" gates: {math: 40}\n keep: 2")
    best, names, kept = order(
        [
            trial("low", evaluated(math=41, code=10)),
            trial("high", evaluated(math=39.9, code=99)),
            trial("good", evaluated(math=40, code=30)),
        ],
        how,
    )
    assert names == ["good", "low", "high"]
    assert kept == ["good", "low"]
    assert best[-1].missed == ("math 39.9 is below 40",)
    assert [one.rank for one in best] == [1, 2, 3]


def test_a_gate_may_be_what_a_source_scores() -> None:
    how = evaluating(" at_least: {code: {of: coder, minus: 2}}\n by: math")
    floors = {"coder": {"code": 50.0}}
    best, names, kept = order(
        [trial("a", evaluated(math=9, code=47)), trial("b", evaluated(math=1, code=48))],
        how,
        floors,
    )
    assert (names, kept) == (["b", "a"], ["b"])
    assert best[1].missed == ("code 47 is below 48, what coder scores less 2",)


@pytest.mark.parametrize(
    ("by", "score"), [("mean", 2.5), ("b", 4.0), ("{a: 1, b: 0.5}", 3.0), ("{a: -1}", -1.0)]
)
def test_what_scores_come_to(by: str, score: float) -> None:
    [one], _, _ = order([trial("t", evaluated(a=1, b=4))], evaluating(f" by: {by}"))
    assert one.score == score


def test_fronts_rank_and_the_loneliest_of_one_come_first() -> None:
    how = evaluating(" by: {pareto: [a, b]}")
    points = {"p": (0, 9), "q": (4, 8), "r": (5, 7), "s": (9, 0), "t": (3, 8), "u": (0, 0)}
    records = [trial(name, evaluated(a=a, b=b)) for name, (a, b) in points.items()]
    best, names, kept = order(records, how)
    assert {one.name: one.score for one in best} == {
        "p": 0, "q": 0, "r": 0, "s": 0, "t": -1, "u": -2
    }  # fmt: skip
    assert names == ["p", "s", "r", "q", "t", "u"]
    assert kept == ["p", "s", "r", "q"]
    few = evaluating(" by: {pareto: [a, b]}\n keep: 3")
    assert order(records, few)[2] == ["p", "s", "r"]


def test_what_stopped_early_or_failed_is_below_and_never_kept() -> None:
    how = evaluating(" subset: [5, 20]\n keep: 9")
    early, later = evaluated(5, a=99), evaluated(20, a=98)
    best, names, kept = order(
        [
            trial("first rung", early),
            trial("broken", early, evaluated(20, error="no")),
            trial("whole", evaluated(5, a=1), evaluated(20, a=1), evaluated(a=1)),
            trial("second rung", early, later),
            trial("unmerged", digest="", state="failed"),
        ],
        how,
    )
    assert names == ["whole", "second rung", "first rung", "broken", "unmerged"]
    assert kept == ["whole"]
    assert [one.rank for one in best] == [1, 2, 3, None, None]
    assert best[3].state == "failed"
    assert best[3].error == "evaluation on 20 examples: no"


def test_an_evaluation_that_succeeds_later_mends_a_trial() -> None:
    [one], _, kept = order([trial("t", evaluated(a=1), state="failed")], evaluating())
    assert (one.state, one.error, kept) == ("merged", None, ["t"])


def test_scores_without_a_task_that_a_gate_asks_for_do_not_count() -> None:
    how = evaluating(" gates: {math: 1}")
    [one], _, kept = order([trial("t", evaluated(code=9))], how)
    assert (one.score, one.rank, kept) == (None, None, [])
    assert one.error == "evaluation on all examples: no score for math; it has code."
    # Once the gate names a task that there is, they do, whatever was said of them then.
    known = trial("t", evaluated(error="no score for math", code=9), state="failed")
    [one], _, kept = order([known], evaluating(" gates: {code: 1}"))
    assert (one.score, one.rank, one.error, kept) == (9, 1, None, ["t"])


def test_a_mean_is_over_the_same_tasks_of_every_trial() -> None:
    records = [
        trial("half", evaluated(math=9)),
        trial("one", evaluated(math=5, code=3)),
        trial("two", evaluated(math=6, code=4)),
        trial("more", evaluated(math=7, code=5, chat=99)),
    ]
    best, names, kept = order(records, evaluating(" keep: 1"))
    assert (names, kept) == (["two", "one", "half", "more"], ["two"])
    assert [one.state for one in best] == ["merged", "merged", "failed", "failed"]
    assert "scores for math and other trials for code, math: a mean" in (best[2].error or "")
    # Of tasks that the recipe names.
    named = parsed(" evaluate: {python: 'a:b', tasks: [math]}\n keep: 1")
    best, names, kept = order(records, named)
    assert (names, kept) == (["half", "more", "two", "one"], ["half"])
    assert [one.score for one in best] == [9, 7, 6, 5]
    # A weighted sum has tasks of its own.
    assert order(records, evaluating(" by: math"))[1] == ["half", "more", "two", "one"]


def test_of_equal_scores_one_may_come_first() -> None:
    records = [trial(name, evaluated(a=a)) for name, a in (("x", 1), ("y", 2), ("zz", 2))]
    judged = choice.judged(records, evaluating(), {})
    assert [one.name for one in choice.ranked(judged, evaluating())] == ["y", "zz", "x"]
    longest = choice.ranked(judged, evaluating(), lambda one: -len(one.name))
    assert [one.name for one in longest] == ["zz", "y", "x"]


@given(
    scores=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    part=st.floats(0.1, 0.9),
    keep=st.integers(0, 4),
)
def test_the_best_part_goes_on_and_at_least_what_is_kept(
    scores: list[int], part: float, keep: int
) -> None:
    more = f" subset: {{sizes: [5], go_on: {part}}}\n" + (f" keep: {keep}" if keep else "")
    how = evaluating(more)
    records = [trial(str(i), evaluated(5, a=score)) for i, score in enumerate(scores)]
    names = choice.going_on(records, how, {}, 5)

    assert len(names) >= min(max(keep, 1), len(scores))
    assert part * len(scores) <= max(len(names), keep) <= max(keep, part * len(scores) + 1)
    assert names == [one.name for one in records if one.name in names]
    left = [scores[int(one.name)] for one in records if one.name not in names]
    assert not left or max(left) <= min(scores[int(name)] for name in names)
    # A run that is resumed knows more of some of them, and decides the same.
    later = [
        trial(one.name, *one.evaluations, evaluated(a=0)) if one.name in names else one
        for one in records
    ]
    assert choice.going_on(later, how, {}, 5) == names
