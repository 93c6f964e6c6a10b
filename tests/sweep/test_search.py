"""What a search proposes, and what it makes of what it is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import optuna
import pytest

from raymerge.errors import PlanError, RecipeError
from raymerge.sweep.axes import Axis, read_axes
from raymerge.sweep.evaluation.model import By, Mean, Pareto
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.search import Sampler, Search, Searching, read_search
from raymerge.sweep.trial import Trial, Value
from tests.sweep.proposals import record_of, rounds, trial_of, under

NUMBERS = "axes: {w: {uniform: [0, 1]}, v: {log_uniform: [0.01, 1]}, k: {int: [1, 8]}}"
MIXED = "axes: {w: {uniform: [0, 1]}, k: [1, 2, 4], n: [true, 1, one]}"
SAMPLERS = get_args(Sampler)
FRONT = Pareto(("math", "code"))


def axes(text: str = NUMBERS) -> dict[str, Axis]:
    return read_axes(under(text, "axes"))


def search(
    sampler: Sampler, *, trials: int = 40, size: int = 8, seed: int = 0, text: str = NUMBERS
) -> Search:
    block = f"search: {{sampler: {sampler}, trials: {trials}, round: {size}, seed: {seed}}}"
    return read_search(under(block, "search"), axes(text), Mean())


def searching(how: Search, text: str = NUMBERS, by: By | None = None, **more: bool) -> Searching:
    gated = more.get("gated", False)
    return Searching(how, axes(text), trial_of, by=by or Mean(), gated=gated)


def height(values: Mapping[str, Value]) -> float:
    """Highest, 0, at w = 0.3, v = 0.1, k = 5."""
    w, v, k = (float(values[name]) for name in ("w", "v", "k"))
    return -((w - 0.3) ** 2) - (v - 0.1) ** 2 - abs(k - 5) / 10


def judged(trial: Trial) -> TrialRecord:
    return record_of(trial, {"math": height(trial.values)})


def names(found: list[list[TrialRecord]]) -> list[list[str]]:
    return [[record.name for record in some] for some in found]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_asks_in_rounds_and_closes_in_on_the_best(sampler: Sampler) -> None:
    number = 14 if sampler == "gp" else 92
    found = rounds(searching(search(sampler, trials=number)), judged)
    # A population repeats points, and those are not asked for again.
    assert sum(map(len, found)) == number or sampler == "nsga2"
    assert max(map(len, found)) == 8
    scores = [record.score or 0.0 for some in found for record in some]
    assert max(scores[8:]) > max(scores[:8])
    for record in found[0]:
        assert 0 <= float(record.values["w"]) <= 1
        assert 0.01 <= float(record.values["v"]) <= 1
        assert record.values["k"] in range(1, 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_told_the_same_it_asks_for_the_same(sampler: Sampler) -> None:
    how = search(sampler, trials=11 if sampler == "gp" else 24)
    whole = rounds(searching(how), judged)
    again = searching(how)
    told = {record.name: record for some in whole[:1] for record in some}
    first = rounds(again, lambda trial: told[trial.name], most=1)
    assert names(first + rounds(again, judged)) == names(whole)
    other = search(sampler, seed=1)
    assert names(rounds(searching(other), judged, most=1)) != names(whole[:1])


def test_cmaes_begins_in_the_middle_and_not_at_random() -> None:
    text = "axes: {a: {uniform: [0, 10]}, b: {uniform: [0, 10]}}"
    how = search("cmaes", size=200, trials=200, text=text)
    [first] = rounds(searching(how, text), lambda trial: record_of(trial, {"math": 0}))
    drawn = [float(record.values["a"]) for record in first]
    mean = sum(drawn) / 200
    assert 4.5 < mean < 5.5
    assert 1.2 < (sum((value - mean) ** 2 for value in drawn) / 200) ** 0.5 < 2.2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_words_and_truths_keep_their_kind_and_equal_points_are_merged_once(
    sampler: Sampler,
) -> None:
    text = "axes: {n: [true, 1, one, 0.5]}"
    how = search(sampler, trials=10 if sampler == "gp" else 40, text=text)
    found = rounds(searching(how, text), lambda trial: record_of(trial, {"math": 1}))
    values = [record.values["n"] for some in found for record in some]
    assert sorted(map(repr, values)) == ["'one'", "0.5", "1", "True"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_failures_are_told_as_failures_and_the_search_goes_on(sampler: Sampler) -> None:
    def judge(trial: Trial) -> TrialRecord:
        failed = float(trial.values["w"]) > 0.5
        return record_of(trial, None if failed else {"math": height(trial.values)})

    number = 10 if sampler == "gp" else 24
    proposer = searching(search(sampler, trials=number))
    assert sum(map(len, rounds(proposer, judge))) == number
    states = [trial.state for trial in proposer.study.trials]
    failed = [float(trial.params["w"]) > 0.5 for trial in proposer.study.trials]
    assert states == [
        optuna.trial.TrialState.FAIL if one else optuna.trial.TrialState.COMPLETE for one in failed
    ]
    assert any(failed)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_front_is_searched_by_its_tasks(sampler: Sampler) -> None:
    def judge(trial: Trial) -> TrialRecord:
        w, v = float(trial.values["w"]), float(trial.values["v"])
        return record_of(trial, {"math": -(w**2) - v, "code": -((w - 1) ** 2) - v, "chat": 0})

    proposer = searching(search(sampler, trials=64), by=FRONT)
    found = rounds(proposer, judge)
    assert {len(trial.values) for trial in proposer.study.trials} == {2}
    last = [float(record.values["v"]) for record in found[-1]]
    assert sum(last) / len(last) < 0.2, "v lowers both, so the front has the least of it"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_gates_come_before_scores(sampler: Sampler) -> None:
    """The less w, the better, but below 0.5 it misses a gate."""

    def judge(trial: Trial) -> TrialRecord:
        missed = ["math: low"] if float(trial.values["w"]) < 0.5 else []
        return record_of(trial, {"math": -float(trial.values["w"])}, missed=missed)

    how = search(sampler, trials=128, size=16)
    clear = {}
    for gated in (True, False):
        found = rounds(searching(how, gated=gated), judge)
        last = [float(record.values["w"]) for some in found[-3:] for record in some]
        clear[gated] = sum(w >= 0.5 for w in last) / len(last)
    assert clear[True] > clear[False] + 0.1


@pytest.mark.parametrize(
    ("block", "text", "said"),
    [
        ("{sampler: tep, trials: 9}", NUMBERS, r"sampler is 'tep'; allowed: .* Did you mean 'tpe'"),
        ("{sampler: tpe}", NUMBERS, r"^s\.yaml:1: trials: missing"),
        ("{trials: 0}", NUMBERS, "trials is 0; allowed: a whole number, 1 to"),
        ("{trials: 9, round: 0.5}", NUMBERS, "round is 0.5"),
        (
            "{trials: 9, sampler: cmaes, round: 3}",
            NUMBERS,
            "round is 3; allowed: a whole number, 4",
        ),
        ("{trials: 9, seed: -1}", NUMBERS, "seed is -1"),
        ("{trials: 9, budget: 3}", NUMBERS, "budget: search has no such key"),
        ("9", NUMBERS, "search is 9; allowed: a mapping"),
        ("{trials: 9, sampler: cmaes}", MIXED, "cmaes moves through numbers, and k is a list"),
        ("{trials: 9, sampler: cmaes}", "axes: {w: {uniform: [0, 1]}}", "needs two axes"),
    ],
)
def test_a_search_that_cannot_be_is_refused(block: str, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_search(under(f"search: {block}", "search"), axes(text), Mean())


def test_cmaes_has_no_fronts() -> None:
    with pytest.raises(RecipeError, match="cmaes has no fronts"):
        read_search(under("search: {sampler: cmaes, trials: 9}", "search"), axes(), FRONT)


def test_rounds_that_are_not_given_fit_the_sampler() -> None:
    found = [
        read_search(under(f"search: {{sampler: {one}, trials: 9}}", "search"), axes(), Mean()).round
        for one in SAMPLERS
    ]
    assert found == [8, 7, 16, 8]


def test_without_the_extra_the_command_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    assert searching(search("tpe")).ask()
    with pytest.raises(PlanError, match=r'cmaes needs cmaes, .* pip install "raymerge\[search\]"'):
        searching(search("cmaes"))


def test_nothing_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    rounds(searching(search("tpe", trials=16)), judged)
    assert capfd.readouterr().err == ""


def test_one_that_is_stopped_on_a_subset_is_pruned() -> None:
    def judge(trial: Trial) -> TrialRecord:
        record = judged(trial)
        if float(trial.values["w"]) < 0.5:
            return record
        part = replace(record.evaluations[0], subset=50)
        return replace(record, evaluations=(part,))

    proposer = searching(search("tpe", trials=16))
    rounds(proposer, judge)
    pruned = [trial.state == optuna.trial.TrialState.PRUNED for trial in proposer.study.trials]
    assert pruned == [float(trial.params["w"]) >= 0.5 for trial in proposer.study.trials]
    steps = [trial.last_step for trial in proposer.study.trials]
    assert steps == [50 if one else None for one in pruned]
