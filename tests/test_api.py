"""The functions a program calls."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import raymerge
from raymerge.errors import ConflictError, PlanError, RecipeError, SourceError
from raymerge.machine import Machine
from raymerge.plan.build import Plan
from raymerge.runtime.settings import Progress
from tests.conftest import Place, read_tensors, shard_hashes

HERE: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 2}


def test_a_recipe_is_loaded_once_and_used_for_plan_and_merge(place: Place) -> None:
    place.llamas()
    recipe = raymerge.load(place.any_recipe("ties"))
    plan = raymerge.plan(recipe, **HERE)
    result = raymerge.merge(recipe, place / "out", **HERE)

    assert result.digest == plan.digest
    assert result.bytes_written == sum(n.slot.nbytes for n in plan.nodes)
    assert result.bytes_read == plan.bytes_read
    assert raymerge.verify(place / "out").ok


def test_paths_may_be_strings(place: Place) -> None:
    place.llamas()
    result = raymerge.merge(str(place.any_recipe("linear")), str(place / "out"), **HERE)

    assert result.output == str(place / "out")
    assert raymerge.verify(str(place / "out")).ok


def test_the_seed_given_replaces_the_recipe_s_and_is_part_of_the_digest(place: Place) -> None:
    place.llamas()
    recipe = raymerge.load(place.any_recipe("dare_linear", seed=1))

    assert raymerge.plan(recipe, seed=2, **HERE).recipe.seed == 2
    digests = {raymerge.plan(recipe, seed=seed, **HERE).digest for seed in (None, 1, 2)}
    assert len(digests) == 2


def test_the_digest_knows_nothing_of_the_machine(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    options: list[dict[str, Any]] = [
        {"workers": 1},
        {"workers": 7},
        {"memory_bytes": 2**30},
        {"tile_elements": 2**14},
        {"out": place / "out"},
        {"out": "/proc/nowhere"},
    ]
    digests = {raymerge.plan(recipe, **{**HERE, **option}).digest for option in options}

    assert digests == {raymerge.plan(recipe, **HERE).digest}
    assert raymerge.plan(recipe, shard_bytes=6000, **HERE).digest not in digests


@pytest.mark.parametrize("tile_elements", [0, -256, 1, 300])
def test_a_tile_that_would_change_bytes_is_refused(place: Place, tile_elements: int) -> None:
    place.llamas()
    with pytest.raises(PlanError, match="a positive multiple of 256"):
        raymerge.plan(place.any_recipe("dare_ties"), tile_elements=tile_elements, **HERE)


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float32"}, {"nan": "pass"}, {"keep": "*norm*"}, {"drop": "lm_head.weight"},
     {"parameters": {"weight": 0.5, "density": 0.4}}],
    ids=str,
)  # fmt: skip
def test_the_digest_knows_what_changes_the_output(place: Place, change: dict[str, Any]) -> None:
    place.llamas()
    before = raymerge.plan(place.any_recipe("ties"), **HERE).digest

    assert raymerge.plan(place.any_recipe("ties", **change), **HERE).digest != before


def test_listeners_hear_of_the_plan_first_and_then_of_every_byte(place: Place) -> None:
    place.llamas()
    heard: list[Plan | Machine | Progress] = []
    lock = threading.Lock()

    def on_progress(progress: Progress) -> None:
        with lock:
            heard.append(progress)

    def on_plan(plan: Plan, machine: Machine) -> None:
        heard.extend([plan, machine])

    recipe = place.any_recipe("ties")
    result = raymerge.merge(recipe, place / "out", on_plan=on_plan, on_progress=on_progress, **HERE)
    plan, machine, *moved = heard

    assert isinstance(plan, Plan)
    assert isinstance(machine, Machine)
    assert plan.digest == result.digest
    progress = [each for each in moved if isinstance(each, Progress)]
    assert sum(each.read_bytes for each in progress) == result.bytes_read
    assert sum(each.written_bytes for each in progress) == result.bytes_written


def test_errors_come_out_as_they_are(place: Place) -> None:
    place.llamas()
    (place / "typo.yaml").write_text("merge_methd: ties\n")
    with pytest.raises(RecipeError, match="merge_method"):
        raymerge.load(place / "typo.yaml")
    with pytest.raises(PlanError, match="--memory"):
        raymerge.plan(place.any_recipe("ties"), memory_bytes=2**20, **HERE)
    with pytest.raises(SourceError, match="does not exist"):
        raymerge.plan(place.recipe("linear", ["gone"], parameters={"weight": 1}), **HERE)
    raymerge.merge(place.any_recipe("ties"), place / "out", **HERE)
    with pytest.raises(ConflictError, match="already holds a checkpoint"):
        raymerge.merge(place.any_recipe("linear"), place / "out", **HERE)


def test_one_file_is_a_source(place: Place) -> None:
    for seed, name in enumerate("ab"):
        place.model(name, {"w": torch.full((3,), float(seed))})
    files = {f"{name}/model.safetensors": {"weight": 1.0} for name in "ab"}
    raymerge.merge(place.recipe("linear", files), place / "out", **HERE)

    assert read_tensors(place / "out")["w"].tolist() == [0.5] * 3


def test_a_merge_of_a_merge_is_a_merge(place: Place) -> None:
    place.llamas()
    raymerge.merge(place.any_recipe("ties"), place / "once", shard_bytes=6000, **HERE)
    again = place.recipe("passthrough", ["once"])
    raymerge.merge(again, place / "twice", shard_bytes=6000, **HERE)

    assert shard_hashes(place / "once") == shard_hashes(place / "twice")
    assert raymerge.verify(place / "twice").problems == ()
