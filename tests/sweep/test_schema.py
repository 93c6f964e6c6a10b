"""The JSON Schema says of a sweep block what `raymerge sweep` says, as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raymerge.errors import RecipeError
from raymerge.sweep.block import SWEEP_KEYS
from raymerge.sweep.schema import block_schema, json_schema
from raymerge.sweep.template import read_template
from tests.recipe import test_schema as plain

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

RUN = {"command": "score {checkpoint} {subset} {split}"}
LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": ["a", {"model": "b", "parameters": {"weight": "1 - $w"}}],
    "parameters": {"weight": "$w"},
}
UNIFORM = {"w": {"uniform": [0, 1]}}
SOUP: dict[str, Any] = {"greedy_soup": {"models": ["a", "b"]}, "evaluate": RUN}
PATH: dict[str, Any] = {"path": {"from": "a", "to": {"model": "b", "label": "x"}}, "evaluate": RUN}


def swept(**block: Any) -> dict[str, Any]:
    return {**LINEAR, "sweep": block}


GOOD: list[dict[str, Any]] = [
    swept(axes={"w": [0.5, 1]}),
    swept(axes={"w": {"linspace": [0, 1, 3]}}),
    swept(axes={"w": {"choice": [1, 2]}}),
    swept(axes=UNIFORM, sample={"n": 3, "seed": 1}),
    swept(axes={"w": {"log_uniform": [0.1, 1]}}, search={"trials": 9}, evaluate=RUN),
    swept(axes=UNIFORM, search={"trials": 9, "sampler": "gp", "round": 2, "seed": 5}, evaluate=RUN),
    swept(axes={"w": [0.5]}, evaluate={"python": "a.py:b", "cpus": 2, "limit_s": 9}, by="math"),
    swept(axes={"w": [0.5]}, evaluate={"lm_eval": {"tasks": ["arc"], "limit": 9}}, keep=1),
    swept(
        axes={"w": [0.5]}, evaluate={**RUN, "tasks": ["math"]}, gates={"math": 40}, by={"math": 1},
        at_least={"code": {"of": "a", "minus": 2}}, subset=[5, 20], scratch="/dev/shm/x",
        split={"search": "val", "final": "test"},
    ),
    swept(axes={"w": [1]}, evaluate=RUN, by={"pareto": ["a", "b"]}, subset={"sizes": [5]}),
    {**LINEAR, "seed": "$w", "dtype": "$dtype", "sweep": {"axes": {"w": [1, 2], "dtype": [
        "bfloat16", "float32"]}}},
    {**LINEAR, "merge_method": "$how", "sweep": {"axes": {"w": [1], "how": ["linear"]}}},
    {"sweep": SOUP},
    {"sweep": PATH, "dtype": "float32", "keep": "*.bias"},
    {"sweep": {**PATH, "path": {**PATH["path"], "points": 3, "along": "arc"}}},
]  # fmt: skip
BAD: list[dict[str, Any]] = [
    swept(),
    swept(axes={}),
    swept(axes={"w": []}),
    swept(axes={"w": [1, 1]}),
    swept(axes={"w": {"linspace": [0, 1]}}),
    swept(axes={"w": {"linspaec": [0, 1, 3]}}),
    swept(axes={"w": {"uniform": [0, 1], "int": [1, 2]}}, sample={"n": 3}),
    swept(axes={"w-1": [1]}),
    swept(axis={"w": [1]}),
    swept(axes=UNIFORM, sample={"seed": 3}),
    swept(axes=UNIFORM, sample={"n": 0}),
    swept(axes=UNIFORM, sample={"n": 3}, search={"trials": 9}, evaluate=RUN),
    swept(axes=UNIFORM, search={"sampler": "tpe"}, evaluate=RUN),
    swept(axes=UNIFORM, search={"trials": 9, "sampler": "tep"}, evaluate=RUN),
    swept(axes={"w": [1]}, evaluate={}),
    swept(axes={"w": [1]}, evaluate={"command": "score"}),
    swept(axes={"w": [1]}, evaluate={**RUN, "python": "a:b"}),
    swept(axes={"w": [1]}, evaluate={"lm_eval": {"limit": 9}}),
    swept(axes={"w": [1]}, evaluate={**RUN, "cpus": 0}),
    swept(axes={"w": [1]}, evaluate={**RUN, "gpus": 1.5}),
    swept(axes={"w": [1]}, evaluate=RUN, keep=0),
    swept(axes={"w": [1]}, evaluate=RUN, by={"pareto": ["a"]}),
    swept(axes={"w": [1]}, evaluate=RUN, by={"math": "much"}),
    swept(axes={"w": [1]}, evaluate=RUN, at_least={"math": {"minus": 2}}),
    swept(axes={"w": [1]}, evaluate=RUN, subset=[0]),
    swept(axes={"w": [1]}, evaluate=RUN, subset={"sizes": [5], "go_on": 1}),
    swept(axes={"w": [1]}, evaluate=RUN, split={"search": "val"}),
    {**LINEAR, "paramters": {}, "sweep": {"axes": {"w": [1]}}},
    {"models": ["$w"], "sweep": {"axes": {"w": ["a"]}}},
    {"sweep": {**SOUP, **PATH}},
    {"sweep": {**SOUP, "greedy_soup": {"models": ["a"]}}},
    {"sweep": {**PATH, "path": {"from": "a"}}},
    {"sweep": {**PATH, "path": {**PATH["path"], "points": 1}}},
    {"sweep": {**PATH, "path": {**PATH["path"], "along": "curve"}}},
]


def first_trials(recipe: dict[str, Any]) -> int:
    template = read_template(json.dumps(recipe), "s.yaml")
    assert template is not None
    return len(template.proposer("out").ask())


def test_the_schema_is_itself_valid_and_is_json() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json.dumps(json_schema())))


@pytest.mark.parametrize("recipe", GOOD, ids=json.dumps)
def test_a_good_sweep_passes_the_schema_and_has_trials(recipe: dict[str, Any]) -> None:
    VALIDATOR.validate(recipe)
    assert first_trials(recipe) >= 1


@pytest.mark.parametrize("recipe", BAD, ids=json.dumps)
def test_a_bad_sweep_fails_the_schema_and_is_refused(recipe: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(recipe)
    with pytest.raises(RecipeError):
        first_trials(recipe)


@pytest.mark.parametrize("recipe", plain.GOOD, ids=json.dumps)
def test_a_good_recipe_without_a_sweep_passes(recipe: dict[str, Any]) -> None:
    VALIDATOR.validate(recipe)


@pytest.mark.parametrize("recipe", plain.BAD, ids=json.dumps)
def test_a_bad_recipe_without_a_sweep_fails(recipe: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_worked_recipe_passes(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        VALIDATOR.validate(document)


def test_every_key_of_the_block_is_in_the_schema() -> None:
    assert set(block_schema()["properties"]) == set(SWEEP_KEYS)


def test_dollars_are_for_sweeps() -> None:
    closed = {key: value for key, value in LINEAR.items() if key != "sweep"}
    assert not VALIDATOR.is_valid(closed)
