"""Sweeps that are run again after something that they rest on was changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import raymerge
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, shard_hashes
from tests.sweep.test_evaluated_sweeps import (
    MACHINE,
    calls,
    fail,
    grid,
    rows,
    states,
    sweep,
    there,
)


def rewrite(place: Place, name: str, seed: int) -> None:
    """Another fine-tune in the place of a source."""
    tensors = fine_tune(tiny_llama_tensors(0, layers=1, dtype=torch.float32), seed)
    place.model(name, tensors, config=llama_config(tensors))


def without_evaluation(recipe: Path) -> Path:
    document = yaml.safe_load(recipe.read_text())
    document["sweep"] = {"axes": document["sweep"]["axes"]}
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    return recipe


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_source_that_was_written_again_stops_the_sweep(place: Place, *, evaluated: bool) -> None:
    recipe = grid(place, [0.5, 1])
    recipe = recipe if evaluated else without_evaluation(recipe)
    first = sweep(place, recipe)
    before = {one.name: shard_hashes(Path(one.out)) for one in first.trials}
    rewrite(place, "b", 7)

    # Also where trials are added to those that are known: they would be compared with them.
    recipe = grid(place, [0.25, 0.5, 1])
    recipe = recipe if evaluated else without_evaluation(recipe)
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 2, done.err
    assert f"{place / 'b'} was written again since w=" in done.err
    assert {one.name: shard_hashes(Path(one.out)) for one in first.trials} == before
    assert len(calls(place)) == 2 * evaluated

    again = sweep(place, recipe, overwrite=True)
    assert not again.failed
    assert all(shard_hashes(Path(one.out)) != before.get(one.name) for one in again.trials)


@pytest.mark.parametrize("block", [{}, {"at_least": {"like_b": {"of": "b", "minus": 200}}}])
def test_a_finished_sweep_outlives_its_sources(place: Place, block: dict[str, Any]) -> None:
    recipe = grid(place, [0.5, 1], **block)
    first = sweep(place, recipe)
    shutil.move(place / "b", place / "gone")
    again = sweep(place, recipe)
    assert (again.resumed, again.trials) == (2, first.trials)
    assert len(calls(place)) == 2 + len(block)


@pytest.mark.parametrize("weights", [[0.5, 1], [1, 0.5]])
def test_trials_of_a_source_before_and_after_it_changed_are_not_mixed(
    place: Place, weights: list[float]
) -> None:
    sweep(place, grid(place, [1]))
    rewrite(place, "b", 7)
    sweep(place, grid(place, [0.5]))
    done = place.run("sweep", grid(place, weights), place / "out", *MACHINE)
    assert done.rc == 2
    assert f"{place / 'b'} was written again since w=1-" in done.err


def test_what_an_evaluator_leaves_beside_a_source_makes_it_no_other(place: Place) -> None:
    recipe = grid(place, [0.5, 1], at_least={"like_b": {"of": "b", "minus": 200}})
    sweep(place, recipe)
    (place / "b" / "eval_results.json").write_text("{}")
    assert sweep(place, recipe).resumed == 2
    assert calls(place).count("b all search") == 1


def test_other_options_are_no_other_source(place: Place) -> None:
    out, sized = place / "out", ("--shard-size", "20KB")
    sweep(place, grid(place, [0.5, 1], keep=2, by="like_b"))
    # Other ranks: the rows are written again, and still say how the trials were merged.
    other = grid(place, [0.5, 1], keep=2, by="like_a")
    done = place.run("sweep", other, out, *MACHINE, *sized, "--json")
    assert (done.rc, done.json["resumed"]) == (0, 2)
    assert sweep(place, other).resumed == 2
    name = done.json["trials"][0]["name"]
    assert place.run("reproduce", out, name, place / "again").rc == 0
    # One that has to be made again is made as it was.
    shutil.rmtree(out / name)
    done = place.run("sweep", other, out, *MACHINE, *sized, "--json")
    assert done.rc == 0, done.err
    assert shard_hashes(out / name) == shard_hashes(place / "again")


def test_a_source_that_a_gate_compares_with_is_evaluated_as_it_is_now(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, at_least={"like_b": {"of": "b", "minus": 200}})
    sweep(place, recipe)
    assert calls(place).count("b all search") == 1
    sweep(place, recipe)
    assert calls(place).count("b all search") == 1
    rewrite(place, "b", 7)
    sweep(place, recipe, overwrite=True)
    assert calls(place).count("b all search") == 2


# --- checkpoints ---------------------------------------------------------------------------------


def remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def remove_shard(checkpoint: Path) -> None:
    min(checkpoint.glob("*.safetensors")).unlink()


def cut(checkpoint: Path) -> None:
    shard = min(checkpoint.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [remove, remove_shard, cut])
@pytest.mark.parametrize("evaluated", [True, False])
def test_a_kept_checkpoint_that_is_not_whole_is_made_again(
    place: Place, harm: Any, *, evaluated: bool
) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b")
    recipe = recipe if evaluated else without_evaluation(recipe)
    first = sweep(place, recipe)
    kept = first.trials[1]
    before = shard_hashes(Path(kept.out))
    harm(Path(kept.out))
    (Path(kept.out) / "own").mkdir(parents=True)
    (Path(kept.out) / "own" / "notes.txt").write_text("mine")
    again = sweep(place, recipe)

    assert (Path(kept.out) / "own" / "notes.txt").read_text() == "mine"

    assert not again.failed
    assert shard_hashes(Path(kept.out)) == before
    assert raymerge.verify(kept.out).ok
    assert len(calls(place)) == 2 * evaluated
    assert [one.score for one in again.trials] == [one.score for one in first.trials]


def test_what_is_left_of_a_checkpoint_stays_where_it_cannot_be_made_again(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b")
    kept = sweep(place, recipe, shard_bytes=5000).trials[1]
    remove_shard(Path(kept.out))
    left = sorted(path.name for path in Path(kept.out).iterdir())
    shutil.move(place / "b", place / "gone")
    [_, failed] = sweep(place, recipe).trials
    assert "does not exist" in (failed.error or "")
    assert sorted(path.name for path in Path(kept.out).iterdir()) == left
    shutil.move(place / "gone", place / "b")


def test_a_kept_checkpoint_that_cannot_be_made_again_keeps_its_scores(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b")
    kept = sweep(place, recipe).trials[1]
    shutil.rmtree(kept.out)
    shutil.copytree(place / "a", kept.out)
    [_, failed] = sweep(place, recipe).trials

    assert "already holds a checkpoint" in (failed.error or "")
    assert failed.evaluations == kept.evaluations
    shutil.rmtree(kept.out)
    assert sweep(place, recipe).trials[1] == kept
    assert len(calls(place)) == 2


# --- evaluators and gates ------------------------------------------------------------------------


def test_a_gate_by_a_wrong_name_costs_no_score(place: Place) -> None:
    wrong = grid(place, [0.5, 1], keep=1, gates={"lke_b": 1})
    done = place.run("sweep", wrong, place / "out", *MACHINE)
    assert done.rc == 4
    assert "no score for lke_b; it has like_a, like_b. Did you mean 'like_b'?" in done.err
    assert len(calls(place)) == 2

    result = sweep(place, grid(place, [0.5, 1], keep=1, gates={"like_b": 1}))
    assert states(result) == {0.5: "removed", 1: "kept"}
    assert len(calls(place)) == 2
    assert not result.failed


def test_an_evaluation_with_fewer_tasks_is_not_compared(place: Place) -> None:
    fail(place, **{"w=1-": "half"})
    result = sweep(place, grid(place, keep=1))
    assert states(result)[1] == "failed"
    assert "a mean of others says nothing" in (result.trials[-1].error or "")
    assert [one.state for one in result.trials].count("kept") == 1


@pytest.mark.parametrize("scratched", [False, True])
def test_an_evaluator_that_is_edited_meanwhile_decides_nothing(
    place: Place, *, scratched: bool
) -> None:
    block = {"scratch": str(place / "scratch")} if scratched else {}
    recipe = grid(place, [0.5, 1], keep=1, by="like_b", **block)
    script = place / "scorer.py"

    def edit(_: object) -> None:
        script.write_text(f"{script.read_text()}\n# edited\n")

    with pytest.raises(raymerge.errors.PlanError, match="changed while trials were evaluated"):
        sweep(place, recipe, on_evaluated=edit)
    assert there(place) == (set() if scratched else {0.5, 1})
    assert states(sweep(place, recipe)) == {0.5: "removed", 1: "kept"}
    assert len(calls(place)) == 4
    assert len(rows(place, "evaluations")) == 4


def test_another_recipe_under_a_name_that_was_merged_is_explained(place: Place) -> None:
    place.llamas()
    recipe = place.recipe("linear", ("a", "b"), name="one.yaml", parameters={"weight": 1})
    assert place.run("sweep", recipe, place / "out", *MACHINE).rc == 0
    place.recipe("linear", ("a", "b"), name="one.yaml", parameters={"weight": 2}, dtype="float16")
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 4
    out = place / "out" / "one"
    assert f"Its recipe is not the one that one was merged by: remove {out} to" in done.err
    shutil.rmtree(out)
    assert place.run("sweep", recipe, place / "out", *MACHINE).rc == 0


def test_what_an_evaluator_writes_may_be_named_in_its_command(place: Place) -> None:
    recipe = grid(place, [0.5, 1], keep=1, by="like_b")
    document = yaml.safe_load(recipe.read_text())
    score = f"python {place / 'scorer.py'} {{checkpoint}} {{subset}} {{split}}"
    log = place / "eval.log"
    log.write_text("")
    command = ["bash", "-c", f"{score} | tee -a {log}"]
    document["sweep"]["evaluate"] = {"command": command}
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    assert states(sweep(place, recipe)) == {0.5: "removed", 1: "kept"}


def test_subsets_may_have_tasks_of_their_own(place: Place) -> None:
    script = place / "more.py"
    recipe = grid(place, keep=1, by="like_b", subset={"sizes": [4], "go_on": 0.2})
    script.write_text(
        "import json,sys\nfrom scorer import HERE, values\nfrom pathlib import Path\n"
        "own = values(Path(sys.argv[1]), 4)\nb = values(HERE / 'b', 4)\n"
        "scores = {'like_b': -sum((x - y) ** 2 for x, y in zip(own, b))}\n"
        "if sys.argv[2] == 'all':\n    scores['extra'] = 0\n"
        "print(json.dumps(scores))\n"
    )
    document = yaml.safe_load(recipe.read_text())
    document["sweep"]["evaluate"] = {
        "command": [sys.executable, str(script), "{checkpoint}", "{subset}"]
    }
    document["sweep"].pop("by")
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    result = sweep(place, recipe)
    assert not result.failed
    assert states(result)[1] == "kept"


def test_a_soup_that_cannot_be_kept_is_an_error_and_no_traceback(place: Place) -> None:
    grid(place, [1])
    soup = place / "soup.yaml"
    scorer = [sys.executable, str(place / "scorer.py"), "{checkpoint}", "{subset}", "{split}"]
    block = {
        "greedy_soup": {"models": [str(place / "a"), str(place / "b")]},
        "evaluate": {"command": scorer},
        "by": "like_b",
        "keep": 1,
    }
    soup.write_text(yaml.safe_dump({"sweep": block}))
    first = place.run("sweep", soup, place / "out", *MACHINE)
    assert first.rc == 0, first.err
    for made in (place / "out").glob("models=*"):
        shutil.rmtree(made)
        shutil.copytree(place / "a", made)
    done = place.run("sweep", soup, place / "out", *MACHINE)
    assert done.rc == 4
    assert "Traceback" not in done.err
    assert "already holds a checkpoint" in done.out
