"""Trials that are merged with one read are what merges of their recipes are, byte for byte."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

import raymerge
from raymerge.errors import ConflictError, NonFiniteError
from raymerge.options import RunOptions
from raymerge.plan.memory import PROCESS_BYTES, THREAD_BYTES, upload_bytes
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import METHOD_KNOBS, Place
from tests.e2e.test_stages import CASES, MODELS, located
from tests.sweep.rounds import LOCAL, assert_equal_to_own, merge, read_bytes, trials
from tests.test_recipes import RECIPES, models  # noqa: F401 - a fixture

MORE: dict[str, dict[str, Any]] = {
    "heavier": {"parameters": {"weight": 0.9, "density": 0.4, "rescale": "l1"}},
    "scaled": {"parameters": {"weight": 0.6, "density": 0.4, "lambda": 0.5}},
    "sparser": {"parameters": {"weight": 0.6, "density": 0.2}},
    "dense": {"parameters": {"weight": 0.6, "density": 1.0}},
    "gone": {"parameters": {"weight": 0.6, "density": 0.0}},
    "one by one": {"parameters": {"weight": 1.0, "density": 0.3}},
    "kept": {"parameters": {"weight": 0.6, "density": 0.4}, "keep": ["*norm*"]},
    "lenient": {"parameters": {"weight": 0.6, "density": 0.4}, "nan": "pass"},
    "of the model": {"parameters": {"weight": 0.6, "density": 0.4}, "trim": "model"},
}


def test_every_method_in_one_round_is_its_own_merge(place: Place) -> None:
    place.llamas(3)
    recipes = {method: place.any_recipe(method) for method in METHOD_KNOBS}
    for name, top in MORE.items():
        recipes[name] = place.recipe("ties", base="base", name=f"{name}.yaml", **top)
    own = {"a": {"density": 0.3}, "c": {"density": 0.7}}
    recipes["others"] = place.recipe(
        "ties", own, base="base", name="o.yaml", parameters={"weight": 1}
    )
    for seed in (1, 2):
        knobs = METHOD_KNOBS["dare_ties"]
        recipes[f"seed {seed}"] = place.any_recipe("dare_ties", seed=seed, parameters=knobs)
        recipes[f"seed {seed}"] = recipes[f"seed {seed}"].rename(place / f"{seed}.yaml")
    place.any_recipe("dare_ties")
    found = merge(trials(recipes, place / "round"))

    read = assert_equal_to_own(found, place / "own")
    assert len(found) == len(recipes)
    assert read_bytes(found) < read / 4


@pytest.mark.parametrize("stats", [False, True])
def test_knobs_of_one_method_take_one_read(place: Place, *, stats: bool) -> None:
    place.llamas(3)
    recipes = {
        f"{weight}-{scale}": place.recipe(
            "ties",
            "abc",
            base="base",
            name=f"{weight}-{scale}.yaml",
            parameters={"weight": weight, "density": 0.3, "lambda": scale},
        )
        for weight in (0.2, 0.5, 1.0)
        for scale in (0.5, 1.0)
    }
    options: RunOptions = {**LOCAL, "stats": stats, "tile_elements": 256}
    found = merge(trials(recipes, place / "round"), options)

    read = assert_equal_to_own(found, place / "own", options)
    assert read_bytes(found) <= 1.02 * read / len(recipes)


def test_stages_are_shared_and_stay_what_they_are(place: Place) -> None:
    base = tiny_llama_tensors(0)
    for number, name in enumerate(MODELS):
        tensors = fine_tune(base, number) if number else base
        place.model(name, tensors, config=llama_config(tensors))
    where = {name: place / name for name in MODELS}
    recipes = {}
    for name, documents in CASES.items():
        recipes[name] = place / f"{name.replace(' ', '-')}.yaml"
        recipes[name].write_text(yaml.safe_dump_all([located(each, where) for each in documents]))
    found = merge(trials(recipes, place / "round"))

    assert_equal_to_own(found, place / "own")


def test_every_recipe_in_the_repository_is_its_own_merge(
    models: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    options: RunOptions = {"engine": "local", "device": "cpu", "workers": 2}
    recipes = {path.stem: path for path in RECIPES}
    found = merge(trials(recipes, tmp_path / "round"), options)

    assert_equal_to_own(found, tmp_path / "own", options)


def test_a_trial_fails_alone(place: Place) -> None:
    base = place.llamas(2)
    broken = fine_tune(base, 2)
    name = next(name for name in broken if "down_proj" in name)
    broken[name][0, 0] = float("nan")
    place.model("b", broken)
    place.model("taken", base)
    knobs = {"weight": 0.5, "density": 0.5}
    recipes = {
        "whole": place.recipe("ties", ["a"], base="base", name="1.yaml", parameters=knobs),
        "broken": place.recipe("ties", base="base", name="2.yaml", parameters=knobs),
        "lenient": place.recipe("ties", base="base", name="3.yaml", parameters=knobs, nan="pass"),
        "also whole": place.recipe(
            "slerp", ["a"], base="base", name="4.yaml", parameters={"t": 0.5}
        ),
    }
    round_ = trials(recipes, place / "round")
    held = place / "round" / "also whole"
    held.mkdir(parents=True)
    (held / "model.safetensors").write_bytes(b"")
    found = merge(round_)

    failed = {name: one.error for name, one in found.items() if one.error}
    assert {name: type(error) for name, error in failed.items()} == {
        "broken": NonFiniteError,
        "also whole": ConflictError,
    }
    assert name in str(failed["broken"])
    assert not (place / "round" / "broken" / "model.safetensors.index.json").exists()
    whole = {name: one for name, one in found.items() if one.result}
    assert_equal_to_own(whole, place / "own")


def test_what_was_merged_before_is_not_merged_again(place: Place) -> None:
    place.llamas()
    recipes = {method: place.any_recipe(method) for method in ("ties", "slerp", "dare_ties")}
    round_ = trials(recipes, place / "round")
    merge(round_[:1])
    found = merge(round_)
    again = merge(round_)

    assert [one.result and one.result.engine for one in found.values()] == [
        "none",
        "local",
        "local",
    ]
    assert {one.result and one.result.engine for one in again.values()} == {"none"}


def test_trials_that_do_not_fit_are_read_for_in_parts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the folder were a store, to which every trial has an upload open."""
    # By its module: `raymerge.sweep` is also a function.
    rounds = importlib.import_module("raymerge.sweep.rounds")
    monkeypatch.setattr(rounds, "fills_together", lambda _: False)
    place.llamas()
    knobs = [{"weight": weight / 8, "density": 0.5} for weight in range(1, 9)]
    recipes = {
        str(i): place.recipe("ties", base="base", name=f"{i}.yaml", parameters=own)
        for i, own in enumerate(knobs)
    }
    thread_bytes = THREAD_BYTES + 4 * upload_bytes(1)
    options: RunOptions = {**LOCAL, "memory_bytes": PROCESS_BYTES + 2 * thread_bytes}
    notes: list[str] = []
    found = merge(trials(recipes, place / "round"), options, on_note=notes.append)

    read = assert_equal_to_own(found, place / "own", options)
    assert [note.partition(" ")[0] for note in notes] == ["8"]
    assert "for 4 and for 4 of them" in notes[0]
    assert read_bytes(found) == read / 4

    told: list[str] = []
    raymerge.sweep(list(recipes.values()), place / "swept", on_note=told.append, **options)
    assert told == ["engine local (as asked), device cpu", *notes]


def test_many_trials_of_a_small_model(place: Place) -> None:
    place.llamas()
    recipes = {
        str(i): place.recipe(
            "ties", base="base", name=f"{i}.yaml", parameters={"weight": i / 40, "density": 0.5}
        )
        for i in range(1, 41)
    }
    found = merge(trials(recipes, place / "round"))

    assert len(found) == 40
    assert_equal_to_own({name: found[name] for name in ("1", "32", "33", "40")}, place / "own")
