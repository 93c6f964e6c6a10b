"""Worked sweeps run as they are, on models that are trained here, with real scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

import raymerge

FOLDER = Path(__file__).parents[2] / "recipes" / "sweeps"
TASKS = ("turned", "mirrored", "inverted")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the evaluator and models of digits."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copy(FOLDER / "digits.py", folder)
    subprocess.run([sys.executable, "digits.py", "models"], cwd=folder, check=True)
    return folder


def test_a_grid_of_real_models_is_chosen_from(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(digits)
    # Sums of a model this small gain nothing from threads.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = raymerge.sweep(FOLDER / "digits_grid.yaml", tmp_path, engine="local", device="cpu")

    assert len(result.trials) == 9
    assert not result.failed
    best, second = sorted(result.trials, key=lambda one: one.rank or 99)[:2]
    assert {one.name for one in result.trials if one.state == "kept"} == {best.name, second.name}
    assert [one.split for one in best.evaluations] == ["search", "search", "final"]
    early = [one for one in result.trials if len(one.evaluations) == 1]
    assert len(early) == 4
    final = best.evaluations[-1].scores
    assert set(final) == set(TASKS)
    # The merge knows all three tasks better than any of those it is made of.
    code = "import digits, json, sys; print(json.dumps([list(digits.score(f'models/{name}', "
    code += "split='final', subset=None).values()) for name in sys.argv[1:]]))"
    told = subprocess.run(
        [sys.executable, "-c", code, *TASKS], cwd=digits, check=True, capture_output=True
    )
    specialists = [fmean(scores) for scores in json.loads(told.stdout)]
    assert fmean(final.values()) > max(specialists)
