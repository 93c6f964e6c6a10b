"""Every sweep of recipes/sweeps runs on networks trained here, and is scored by what they do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest

import raymerge
from raymerge.options import RunOptions
from raymerge.sweep.barrier import barriers
from raymerge.sweep.choice import newest
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.run import SweepResult
from recipes.sweeps import digits

FOLDER = Path(__file__).parents[2] / "recipes" / "sweeps"
LOCAL: RunOptions = {"engine": "local", "device": "cpu", "workers": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/base, models/run-1 and so on, and what scores them."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copy(digits.__file__, folder)
    # Sums of a model this small gain nothing from threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "digits.py", "models"]
    subprocess.run(command, cwd=folder, check=True, env=environment)
    return folder


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return models


def by_itself(name: str) -> float:
    """What a model scores, by the mean over the tasks, on the digits that choose."""
    scored = digits.score(f"models/{name}", split="search", subset=None)
    return fmean(scored.values())


def run(name: str, out: Path) -> SweepResult:
    result = raymerge.sweep(FOLDER / f"{name}.yaml", out, **LOCAL)
    assert not result.failed, result.failed
    return result


def scores(record: TrialRecord) -> Mapping[str, float]:
    whole = newest(record, "search", None)
    assert whole is not None
    return whole.scores


def kept(result: SweepResult) -> list[TrialRecord]:
    return [one for one in result.trials if one.state == "kept"]


def mean(record: TrialRecord) -> float:
    return fmean(scores(record).values())


@pytest.mark.usefixtures("here")
def test_a_grid_without_scores_is_merged_whole(tmp_path: Path) -> None:
    result = run("ties_grid", tmp_path)
    assert [one.state for one in result.trials] == ["merged"] * 9


@pytest.mark.usefixtures("here")
def test_the_seeds_of_dare(tmp_path: Path) -> None:
    result = run("dare_seeds", tmp_path)
    assert [one.values["seed"] for one in result.trials] == list(range(5))
    assert len(set(map(mean, result.trials))) > 1
    assert min(map(mean, result.trials)) > max(map(by_itself, digits.TASKS))


@pytest.mark.usefixtures("here")
def test_cmaes_finds_better_weights_from_round_to_round(tmp_path: Path) -> None:
    result = run("cmaes_layers", tmp_path)
    means = list(map(mean, result.trials))
    assert len(means) == 32
    assert max(means[8:]) > max(means[:8])
    assert max(means) > max(map(by_itself, ("base", *digits.TASKS)))
    [best] = kept(result)
    assert newest(best, "final", None) is not None
    # A sweep that is run again asks for the same, and finds all of it in the ledger.
    again = run("cmaes_layers", tmp_path)
    assert (again.resumed, again.bytes_read) == (32, 0)
    assert [one.name for one in again.trials] == [one.name for one in result.trials]


@pytest.mark.usefixtures("here")
def test_the_soup_is_no_worse_than_its_best_ingredient(tmp_path: Path) -> None:
    result = run("greedy_soup", tmp_path)
    assert len(result.trials) == 8 + 7
    singles = {}
    for one in result.trials[:8]:
        name = str(one.values["soup"])
        singles[name] = scores(one)["likelihood"]
        own = digits.likelihood(f"models/{name}", split="search", subset=None)
        assert singles[name] == pytest.approx(own["likelihood"])
    [best] = kept(result)
    assert scores(best)["likelihood"] >= max(singles.values())
    assert max(singles, key=singles.__getitem__) in str(best.values["soup"]).split("+")


def test_fine_tunes_of_one_base_have_no_barrier_and_networks_apart_have(
    here: Path, tmp_path: Path
) -> None:
    text = (FOLDER / "path.yaml").read_text()
    apart = here / "apart.yaml"
    apart.write_text(text.replace("run-", "apart-").replace("11", "5"))
    near = barriers(run("path", tmp_path / "near").trials)
    others = raymerge.sweep(apart, tmp_path / "others", **LOCAL)
    [far] = barriers(others.trials).values()
    assert near["likelihood"].height < 0.01
    assert far.height > 0.2
    assert 0 < far.t < 1
    assert others.as_json()["barriers"]["likelihood"]["height"] == far.height
