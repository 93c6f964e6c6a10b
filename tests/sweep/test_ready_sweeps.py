"""The greedy soup and the path: what they read, propose and make of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from raymerge.errors import RecipeError
from raymerge.recipe.render import render
from raymerge.sweep.axes import Choices
from raymerge.sweep.barrier import Barrier, barrier_lines, barriers
from raymerge.sweep.evaluation.model import Mean, Pareto
from raymerge.sweep.greedy import GreedySoup, read_soup
from raymerge.sweep.path import read_path
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.trial import Trial
from tests.sweep.proposals import Scores, block, record_of, rounds, trial_of, under

LABELS = ("a", "b", "c", "d")


def soup_of(chosen: Sequence[int]) -> Trial:
    return trial_of({"soup": "+".join(LABELS[i] for i in chosen)})


def stirred(
    scores: Mapping[str, float | None], *, missing: Sequence[str] = ()
) -> tuple[tuple[str, ...], list[list[str]]]:
    """What a greedy soup keeps, and what it asked for."""

    def judge(trial: Trial) -> TrialRecord:
        name = str(trial.values["soup"])
        score = scores[name]
        found: Scores = None if score is None else {"math": score}
        return record_of(trial, found, missed=["math: low"] if name in missing else [])

    proposer = GreedySoup(LABELS, soup_of)
    asked = rounds(proposer, judge)
    return proposer.soup, [[str(record.values["soup"]) for record in some] for some in asked]


def test_ingredients_first_then_one_average_a_round_from_the_best_down() -> None:
    kept, asked = stirred(
        {"a": 1, "b": 4, "c": 3, "d": 2, "b+c": 3.9, "b+d": 4, "a+b+d": 5}
    )  # b+c is worse than b; b+d is no worse, and stays
    assert asked == [["a", "b", "c", "d"], ["b+c"], ["b+d"], ["a+b+d"]]
    assert kept == ("a", "b", "d")


def test_of_equal_ingredients_the_first_in_the_recipe_goes_first() -> None:
    _, asked = stirred({"a": 1, "b": 2, "c": 2, "d": 1, "b+c": 1, "a+b": 1, "b+d": 1})
    assert asked[1:] == [["b+c"], ["a+b"], ["b+d"]]


def test_what_failed_is_left_out() -> None:
    kept, asked = stirred({"a": None, "b": 2, "c": 1, "d": None, "b+c": None})
    assert asked[1:] == [["b+c"]]
    assert kept == ("b",)
    assert stirred(dict.fromkeys(LABELS)) == ((), [["a", "b", "c", "d"]])


def test_a_gate_weighs_more_than_a_score() -> None:
    scores = {"a": 9.0, "b": 2.0, "c": 1.0, "d": 0.0, "a+b": 5.0, "b+c": 2.0, "b+c+d": 3.0}
    kept, asked = stirred({**scores, "a+b+c": 9}, missing=["a", "a+b+c", "b+c+d"])
    assert asked[1:] == [["b+c"], ["b+c+d"], ["a+b+c"]]
    assert kept == ("b", "c")


def test_the_soup_of_all_is_an_average() -> None:
    models = "greedy_soup: {models: [x/a, {model: x/b, label: bee}]}"
    made = read_soup(under(models, "greedy_soup"), block("dtype: bfloat16"), Mean())
    assert render([made]) == (
        "merge_method: linear\nmodels:\n- x/a\n- model: x/b\n  label: bee\n"
        "parameters:\n  weight: 1\ndtype: bfloat16\n"
    )


@pytest.mark.parametrize(
    ("soup", "top", "said"),
    [
        ("{models: [a]}", "dtype: float32", r"s\.yaml:1: models: allowed: a list of two"),
        ("{}", "dtype: float32", "models: allowed"),
        ("[a, b]", "dtype: float32", "greedy_soup is a list; allowed: a mapping"),
        ("{modles: [a, b]}", "dtype: float32", "Did you mean 'models'"),
        ("{models: [a, b]}", "merge_method: ties", "merge_method: greedy_soup averages"),
        ("{models: [a, b]}", "base_model: a", "base_model: greedy_soup says what is merged"),
    ],
)
def test_a_soup_that_cannot_be_is_refused(soup: str, top: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_soup(under(f"greedy_soup: {soup}", "greedy_soup"), block(top), Mean())


def test_a_soup_needs_one_score() -> None:
    node = under("greedy_soup: {models: [a, b]}", "greedy_soup")
    with pytest.raises(RecipeError, match="goes by one score"):
        read_soup(node, block("dtype: float32"), Pareto(("math", "code")))


def test_a_line_and_an_arc() -> None:
    line = "path: {from: x/a, to: {model: x/b, label: bee}, points: 3}"
    made, axes = read_path(under(line, "path"), block("dtype: float32"))
    assert render([made]) == (
        "merge_method: linear\nmodels:\n- model: x/a\n  parameters:\n    weight: 1 - $t\n"
        "- model: x/b\n  label: bee\n  parameters:\n    weight: $t\ndtype: float32\n"
    )
    assert axes == {"t": Choices((0.0, 0.5, 1.0))}
    made, axes = read_path(under("path: {from: a, to: b, along: arc}", "path"), block("seed: 1"))
    assert render([made]) == (
        "merge_method: slerp\nbase_model: a\nmodels:\n- b\nparameters:\n  t: $t\nseed: 1\n"
    )
    assert axes["t"] == Choices(tuple(i / 10 for i in range(11)))


@pytest.mark.parametrize(
    ("path", "top", "said"),
    [
        ("{from: a}", "seed: 1", r"s\.yaml:1: to: missing; a path runs from"),
        ("{from: a, to: b, along: curve}", "seed: 1", "along is 'curve'; allowed: line, arc"),
        ("{from: a, to: b, points: 1}", "seed: 1", "points is 1; allowed: a whole number, 2"),
        ("{from: a, to: b, t: 1}", "seed: 1", "t: path has no such key"),
        ("{from: a, to: b}", "models: [a]", "models: path says what is merged"),
        ("{from: a, to: {model: b, parameters: {weight: 1}}}", "seed: 1", "parameters: path says"),
    ],
)
def test_a_path_that_cannot_be_is_refused(path: str, top: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_path(under(f"path: {path}", "path"), block(top))


def along(*scores: Scores) -> list[TrialRecord]:
    points = [trial_of({"t": i / (len(scores) - 1)}) for i in range(len(scores))]
    return [record_of(point, one) for point, one in zip(points, scores, strict=True)]


def test_a_barrier_is_held_against_the_line_between_the_ends() -> None:
    records = along({"math": 80, "code": 0}, {"math": 50, "code": 9}, {"math": 90, "code": 0})
    found = {"math": Barrier(35.0, 0.5), "code": Barrier(0.0, 0.0)}
    assert barriers(records) == found
    assert barriers(list(reversed(records))) == found
    assert barrier_lines(records)[0] == "barrier of math: 35 at t=0.5"


def test_without_both_ends_there_is_no_barrier() -> None:
    assert barriers(along({"math": 1}, {"math": 0}, None)) == {}
    grid = [{"t": 0.0, "w": 1}, {"t": 1.0, "w": 1}]
    assert barriers([record_of(trial_of(values), {"math": 1}) for values in grid]) == {}
    found = barriers(along({"math": 1}, None, {"math": 0.5}, {"math": 1}))
    assert found["math"].height == 0.5
