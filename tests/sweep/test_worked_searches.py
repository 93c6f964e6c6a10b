"""Every sweep of recipes/sweeps runs on networks trained here, and is scored by what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest
import torch

import raymerge
from raymerge.options import RunOptions
from raymerge.sweep.choice import newest
from raymerge.sweep.path import barriers
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.run import SweepResult
from tests import digits

FOLDER = Path(__file__).parents[2] / "recipes" / "sweeps"
LOCAL: RunOptions = {"engine": "local", "device": "cpu", "workers": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/base, models/run-1 and so on, and score.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits")
    data = digits.digits()
    networks = {**digits.base_and_specialists(data), **digits.runs(data), **digits.apart(data)}
    for name, network in networks.items():
        digits.write_network(folder / "models" / name, network)
    digits.write_evaluator(folder, data)
    (folder / "scores.json").write_text(
        json.dumps({name: digits.scores_of(one, data, "search") for name, one in networks.items()})
    )
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    return models


def run(name: str, out: Path) -> SweepResult:
    result = raymerge.sweep(FOLDER / f"{name}.yaml", out, **LOCAL)
    assert not result.failed, result.failed
    return result


def scores(record: TrialRecord) -> Mapping[str, float]:
    whole = newest(record, "search", None)
    assert whole is not None
    return whole.scores


def own(models: Path) -> dict[str, dict[str, float]]:
    """What the models score by themselves."""
    found: dict[str, dict[str, float]] = json.loads((models / "scores.json").read_text())
    return found


def kept(result: SweepResult) -> list[TrialRecord]:
    return [one for one in result.trials if one.state == "kept"]


def mean(scored: Mapping[str, float]) -> float:
    return fmean(scored[task] for task in ("math", "code"))


def test_the_grid_of_ties(here: Path, tmp_path: Path) -> None:
    result = run("ties_grid", tmp_path)
    assert len(result.trials) == 9
    best = sorted(result.trials, key=lambda one: one.rank or 0)
    assert [one.state for one in best] == ["kept"] * 3 + ["removed"] * 6
    singles = [mean(own(here)[name]) for name in ("math", "code")]
    assert mean(scores(best[0])) > max(singles)


@pytest.mark.usefixtures("here")
def test_the_seeds_of_dare(tmp_path: Path) -> None:
    result = run("dare_seeds", tmp_path)
    assert [one.values["seed"] for one in result.trials] == list(range(5))
    assert len({mean(scores(one)) for one in result.trials}) > 1


@pytest.mark.timeout(600)
def test_cmaes_finds_better_weights_from_round_to_round(here: Path, tmp_path: Path) -> None:
    result = run("cmaes_layers", tmp_path)
    means = [mean(scores(one)) for one in result.trials]
    assert len(means) == 32
    assert max(means[8:]) > max(means[:8])
    assert max(means) > max(mean(own(here)[name]) for name in ("base", "math", "code"))
    [best] = kept(result)
    assert newest(best, "final", None) is not None
    # A sweep that is run again asks for the same, and finds all of it in the ledger.
    again = run("cmaes_layers", tmp_path)
    assert (again.resumed, again.bytes_read) == (32, 0)
    assert [one.name for one in again.trials] == [one.name for one in result.trials]


def test_the_soup_is_no_worse_than_its_best_ingredient(here: Path, tmp_path: Path) -> None:
    result = run("greedy_soup", tmp_path)
    assert len(result.trials) == 8 + 7
    singles = {name: one["likelihood"] for name, one in own(here).items() if "run" in name}
    for one in result.trials[:8]:
        assert scores(one)["likelihood"] == pytest.approx(singles[str(one.values["soup"])])
    [best] = kept(result)
    assert scores(best)["likelihood"] >= max(singles.values())
    assert max(singles, key=singles.__getitem__) in str(best.values["soup"]).split("+")


def test_fine_tunes_of_one_base_have_no_barrier_and_networks_apart_have(
    here: Path, tmp_path: Path
) -> None:
    text = (FOLDER / "path.yaml").read_text()
    apart = here / "apart.yaml"
    apart.write_text(
        text.replace("run-1", "apart-1").replace("run-2", "apart-2").replace("11", "5")
    )
    one_base = barriers(run("path", tmp_path / "one").trials)
    others = raymerge.sweep(apart, tmp_path / "others", **LOCAL)
    far = barriers(others.trials)
    assert one_base["likelihood"].height < 0.01
    assert one_base["plain"].height < 1
    assert far["likelihood"].height > 0.5
    assert far["plain"].height > 20
    assert 0 < far["plain"].t < 1
    assert others.as_json()["barriers"]["plain"]["height"] == far["plain"].height
