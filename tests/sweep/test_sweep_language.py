"""Axes, expressions and trials of a sweep, and sweeps from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymerge.errors import RecipeError
from raymerge.recipe import loads
from raymerge.recipe.document import Place, read_documents
from raymerge.recipe.render import render
from raymerge.sweep.axes import read_axes, sample
from raymerge.sweep.expressions import evaluate, fill
from raymerge.sweep.template import Template, read_template
from raymerge.sweep.trial import Trial, Value

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.yaml"))
HERE = Place("s.yaml", 3)
VALUES: dict[str, Value] = {"w": 0.25, "k": 3, "model": "models/a", "flag": True}
RECIPE = """\
merge_method: linear
models:
  - { model: a, parameters: { weight: $w } }
  - { model: $m, parameters: { weight: 1 - $w } }
sweep:
  axes:
    w: [0.5, 0.25]
    m: [b, c/d]
"""


def template(text: str = RECIPE) -> Template:
    found = read_template(text, "s.yaml")
    assert found is not None
    return found


def trials(text: str = RECIPE) -> list[Trial]:
    return list(template(text).trials("out"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$w", 0.25),
        ("${k}", 3),
        ("$model", "models/a"),
        ("$flag", True),
        ("1 - $w", 0.75),
        ("-$w * 2 + $k", 2.5),
        ("min($k, 1)", 1),
        ("2 ** $k", 8),
        ("$k // 2", 1),
        ("sqrt($k + 1)", 2.0),
    ],
)
def test_what_an_expression_comes_to(text: str, value: Value) -> None:
    assert evaluate(text, VALUES, HERE) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 - $u", "there is no axis 'u'"),
        ("1 - $modle", "Did you mean 'model'?"),
        ("1 / ($w - 0.25)", "cannot be worked out"),
        ("(-1.0) ** $w", "cannot be worked out"),
        ("9.0 ** 9 ** 9 ** $k", "cannot be worked out"),
        ("$model + 1", "arithmetic takes numbers"),
        ("$flag + 1", "arithmetic takes numbers"),
        ("__import__('os').system('true') + $w", "not allowed"),
        ("$w.real", "not allowed"),
        ("[$w for x in (1,)]", "not allowed"),
        ("$w if 1 else 2", "not allowed"),
        ("min(*[$w])", "not allowed"),
        ("min($w)", "min"),
        ("1 -- - $w )", "no arithmetic"),
        ("(" * 300 + "$w", "too long"),
    ],
)
def test_what_is_no_expression_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"^s\.yaml:3: ") as caught:
        evaluate(text, VALUES, HERE)
    assert said in str(caught.value)


def test_values_in_a_text() -> None:
    assert fill("x/${k}-$w/$$k", VALUES, HERE) == "x/3-0.25/$k"


def test_a_grid_is_every_combination_with_the_lines_of_the_file() -> None:
    made = trials()
    assert [dict(trial.values) for trial in made] == [
        {"w": 0.5, "m": "b"},
        {"w": 0.5, "m": "c/d"},
        {"w": 0.25, "m": "b"},
        {"w": 0.25, "m": "c/d"},
    ]
    first = made[0].recipe
    assert [ref.location for ref in first.sources] == ["a", "b"]
    assert [ref.line for ref in first.sources] == [3, 4]
    assert first.resolver(["x"])("x") == {"weight": (0.5, 0.5), "normalize": True}
    assert made[0].out == f"out/{made[0].name}"


def test_a_trial_alone_is_a_recipe() -> None:
    for trial in trials():
        alone = loads(trial.text)
        assert alone.text == trial.text
        assert [ref.location for ref in alone.sources] == [
            ref.location for ref in trial.recipe.sources
        ]


def test_names_are_of_values_and_recipe_and_equal_trials_run_once() -> None:
    names = [trial.name for trial in trials()]
    assert names[1].startswith("w=0.5_m=d-")
    assert names == [trial.name for trial in trials("# another layout\n" + RECIPE)]
    assert len(trials(RECIPE.replace("1 - $w", "1 - $w + 0 * $w"))) == 4
    clipped = RECIPE.replace("weight: $w", 'weight: "min($w, 0.1)"')
    folded = clipped.replace("1 - $w", "1")
    assert len(trials(folded)) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1 - $w", "1 - $v", r"s.yaml:4: \$v: there is no axis 'v'; axes: m, w"),
        ("model: $m", "model: b", r"s.yaml:7: axes: m is used nowhere"),
        ("[0.5, 0.25]", "[]", r"w is an empty list"),
        ("[0.5, 0.25]", "[1, 1]", "listed twice"),
        ("[0.5, 0.25]", "{linspaec: [0, 1, 2]}", "Did you mean 'linspace'"),
        ("[0.5, 0.25]", "{uniform: [0, 1]}", "add sample"),
        ("[0.5, 0.25]", "[0.5, nine]", r"^s.yaml:4: '1 - \$w': \$w is 'nine'"),
        ("  axes:", "  axis:", "Did you mean 'axes'"),
    ],
)
def test_a_wrong_block_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        trials(RECIPE.replace(old, new))


def test_axes_by_formula() -> None:
    [top] = read_documents(
        "a: {linspace: [0, 1, 11]}\nb: {geomspace: [0.1, 10, 3]}\nc: {range: [2, 8, 3]}", "s.yaml"
    )
    axes = read_axes(top)
    assert [getattr(axis, "values", None) for axis in axes.values()] == [
        tuple(i / 10 for i in range(11)),
        (0.1, 1.0, 10.0),
        (2, 5),
    ]


def test_draws_stay_when_trials_or_axes_are_added() -> None:
    [top] = read_documents(
        "a: {uniform: [0, 1]}\nb: {log_uniform: [0.01, 100]}\nc: {int: [1, 3]}\nd: [x, y]", "s.yaml"
    )
    axes = read_axes(top)
    drawn = list(sample(axes, number=300, seed=1))
    only = list(sample({"a": axes["a"]}, number=3, seed=1))
    assert [point["a"] for point in drawn[:3]] == [point["a"] for point in only]
    assert {point["c"] for point in drawn} == {1, 2, 3}
    assert {point["d"] for point in drawn} == {"x", "y"}
    below = sum(float(point["b"]) < 1 for point in drawn)
    assert 120 < below < 180
    assert list(sample(axes, number=3, seed=2)) != drawn[:3]


def test_what_is_rendered_reads_as_it_was() -> None:
    text = 'a: 1e-5\nb: "no"\nc: no\nd: [x y, "a\\nb", {e: ~}]\nf: 0x1F\n"g: h": "\\u00e9 #"\n'
    documents = read_documents(text, "s.yaml")
    again = read_documents(render(documents), "s.yaml")
    assert render(again) == render(documents)
    assert again[0].fields.keys() == documents[0].fields.keys()


def test_a_sweep_is_no_merge() -> None:
    with pytest.raises(RecipeError, match="raymerge sweep"):
        loads(RECIPE)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_worked_sweep_names_its_first_trials(path: Path) -> None:
    assert len(template(path.read_text()).proposer("out").ask()) > 1
