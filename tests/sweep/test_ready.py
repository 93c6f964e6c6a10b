"""What of a sweep is checked before anything is merged, and how evaluations share this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymerge.errors import PlanError
from raymerge.sweep.evaluation import Pool, ready
from raymerge.sweep.record import Evaluated
from tests.conftest import Place, finish, spawn
from tests.sweep.blocks import parsed
from tests.sweep.test_evaluated_sweeps import MACHINE, calls, grid
from tests.sweep.test_evaluation import has_ended

JUDGE = """
from math import sqrt as root
WEIGHTS = {}

def score(checkpoint, *, split, subset):
    return {"math": 1}
"""


def with_block(recipe: Path, **block: Any) -> Path:
    """A sweep with other keys in its block."""
    document = yaml.safe_load(recipe.read_text())
    document["sweep"] |= block
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    return recipe


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"python": "judge.py:scoer"}, "judge.py has no scoer. Did you mean 'score'?"),
        ({"python": "juge.py:score"}, "there is no file juge.py, as seen from "),
        ({"python": "no_such_module.inside:score"}, "there is no module no_such_module.inside"),
        ({"command": "pyhton {checkpoint}"}, "pyhton is no program that can be run here"),
        ({"python": "judge.py:score", "gpus": 3}, "gpus is 3, and this machine has 2"),
        ({"python": "judge.py:score", "gpus": 1.5}, "gpus is 1.5; allowed: 0, a part of one"),
        ({"python": "broken.py:score"}, "broken.py cannot be read: "),
    ],
)
def test_an_evaluator_that_is_not_there_is_said_beforehand(
    place: Place, monkeypatch: pytest.MonkeyPatch, evaluate: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(place.path)
    monkeypatch.setattr(ready, "gpu_names", lambda: ["4", "7"])
    (place / "judge.py").write_text(JUDGE)
    (place / "broken.py").write_text("def score(:\n")
    recipe = with_block(grid(place, [0.5, 1]), evaluate=evaluate)
    for more in (("--dry-run",), MACHINE):
        done = place.run("sweep", recipe, place / "out", *more)
        assert done.rc == 2
        assert said in done.err
    assert not list((place / "out").glob("w=*"))


@pytest.mark.parametrize("name", ["score", "root", "WEIGHTS"])
def test_whatever_a_file_names_may_be_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "judge.py"
    path.write_text(JUDGE)
    ready.check_ready(parsed(f" evaluate: {{python: '{path}:{name}'}}"))
    with pytest.raises(PlanError):
        ready.check_ready(parsed(f" evaluate: {{python: '{path}:other'}}"))
    path.write_text(f"{JUDGE}\nfrom os.path import *\n")
    ready.check_ready(parsed(f" evaluate: {{python: '{path}:other'}}"))
    ready.check_ready(parsed(" evaluate: {python: 'json.decoder:JSONDecoder'}"))


@pytest.mark.parametrize(
    ("keys", "slots"),
    [
        ("", [None]),
        ("cpus: 2", [None, None, None, None]),
        ("cpus: 64", [None]),
        ("gpus: 1", ["0", "1", "2", "5"]),
        ("gpus: 2", ["0,1", "2,5"]),
        ("gpus: 3", ["0,1,2"]),
        ("gpus: 0.5", ["0", "1", "2", "5", "0", "1", "2", "5"]),
        ("gpus: 1, cpus: 4", ["0", "1"]),
    ],
)
def test_evaluations_share_the_devices_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, keys: str, slots: list[str | None]
) -> None:
    monkeypatch.setattr(ready, "gpu_names", lambda: ["0", "1", "2", "5"])
    monkeypatch.setattr(ready, "num_cpus", lambda: 8)
    block = parsed(f" evaluate: {{python: 'a:b', {keys}}}")
    assert ready.slots_here(block) == slots


def test_each_evaluation_sees_its_own_devices(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = (
        f"import os,time; open({str(seen)!r},'a').write(os.environ['CUDA_VISIBLE_DEVICES']+'\\n');"
        "time.sleep(0.3); print('{\"a\": 1}')"
    )
    found: list[Evaluated] = []
    command = [sys.executable, "-c", code, "{checkpoint}"]
    block = parsed(f" evaluate: {{command: {json.dumps(command)}, gpus: 1}}")
    with Pool(block, ["4", "7"], on_evaluated=found.append, here=True) as pool:
        for number in range(4):
            pool.submit(str(number), "x")
        pool.wait()
    assert [one.error for one in found] == [None] * 4
    assert sorted(seen.read_text().split()) == ["4", "4", "7", "7"]


# --- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"at_least": {"like_a": {"of": "bb"}}}, "no source 'bb'; sources: a, b. Did you mean 'b'"),
        ({"by": {"paretto": ["like_a", "like_b"]}}, "paretto is a list; allowed: weights by task"),
        ({"axes": {"w": [0.5, "much"]}}, "(the trial of w=much)"),
        ({"axes": {"w": [0.5, 0.5]}}, "w: a value is listed twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(place: Place, block: Any, said: str) -> None:
    recipe = with_block(grid(place, [0.5, 1]), **block)
    done = place.run("sweep", recipe, place / "out", "--dry-run")
    assert done.rc == 2
    assert said in done.err
    assert f"{recipe}:" in done.err
    assert not (place / "out").exists()


def test_one_seed_for_trials_that_differ_by_it_is_refused(place: Place) -> None:
    recipe = with_block(grid(place, [0.5, 1]), axes={"w": [0.5], "s": {"range": [0, 3]}})
    recipe.write_text(f"{recipe.read_text()}seed: $s\n")
    assert place.run("sweep", recipe, place / "out", "--dry-run").rc == 0
    done = place.run("sweep", recipe, place / "out", "--dry-run", "--seed", 1)
    assert done.rc == 2
    assert "seed is '$s', an axis of the sweep; leave out --seed, or the axis" in done.err


def test_two_sweeps_do_not_share_a_scratch(place: Place) -> None:
    scratch = place / "scratch"
    recipe = grid(place, [0.5, 1], keep=1, by="like_b", scratch=str(scratch))
    [first, _] = place.run("sweep", recipe, place / "out", "--dry-run", "--json").json["trials"]
    (scratch / first["name"]).mkdir(parents=True)
    (scratch / first["name"] / "config.json").write_text("{}")
    done = place.run("sweep", recipe, place / "out", *MACHINE)
    assert done.rc == 2
    assert f"scratch: {scratch / first['name']} is there already" in done.err
    assert calls(place) == []


# --- while it runs -------------------------------------------------------------------------------


def hanging(place: Place) -> tuple[Path, Path]:
    """A sweep whose evaluator starts another program and hangs, and where that one's id is."""
    pid = place / "pid"
    code = (
        "import subprocess,time,os; p=subprocess.Popen(['sleep','300']);"
        f"open({str(pid)!r}+'.new','w').write(str(p.pid)); os.rename({str(pid)!r}+'.new',"
        f"{str(pid)!r}); time.sleep(300)"
    )
    command = [sys.executable, "-c", code, "{checkpoint}"]
    return with_block(grid(place, [0.5, 1]), evaluate={"command": command}), pid


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_evaluator_ends_with_its_sweep_however_that_ends(
    place: Place, number: signal.Signals
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started by nohup, which sweeps then heed")
    recipe, pid = hanging(place)
    process = spawn("sweep", recipe, place / "out", *MACHINE)
    until(pid.exists)
    status = place.run("sweep", "--status", place / "out")
    assert status.out.splitlines()[-1] == f"{place / 'out'}: 2 trials: 2 merged; it runs"
    os.kill(process.pid, number)
    done = finish(process, 30)
    until(lambda: has_ended(int(pid.read_text())), 10)
    if number != signal.SIGKILL:
        assert done.rc in {130, 143}
        assert f"run the same command again to finish {place / 'out'}" in done.err


def test_the_status_of_a_sweep_before_anything_is_merged(place: Place) -> None:
    recipe = grid(place, [0.5, 1])
    process = spawn("sweep", recipe, place / "out", *MACHINE)
    asked = place / "out" / ".raymerge-sweep" / "asked.json"
    until(asked.exists)
    process.send_signal(signal.SIGSTOP)
    status = place.run("sweep", "--status", place / "out")
    process.send_signal(signal.SIGCONT)
    assert finish(process).rc == 0
    assert status.rc == 0
    assert status.out.splitlines()[-1].startswith(f"{place / 'out'}: 2 trials: ")
    assert status.out.splitlines()[-1].endswith("; it runs")


def test_two_sweeps_at_once_do_not_share_a_scratch(place: Place) -> None:
    scratch = place / "scratch"
    recipe, pid = hanging(place)
    recipe = with_block(recipe, keep=1, scratch=str(scratch))
    process = spawn("sweep", recipe, place / "out", *MACHINE)
    until(pid.exists)
    other = with_block(recipe, axes={"w": [0.25]})
    done = place.run("sweep", other, place / "other", *MACHINE)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert done.rc == 2
    assert f"another sweep that runs has its candidates in {scratch}" in done.err


def test_no_evaluation_begins_once_its_sweep_ends(place: Place) -> None:
    started = place / "started"
    command = [
        "bash",
        "-c",
        f"trap '' TERM; echo x >> {started}; sleep 100 & wait; sleep 100; : {{checkpoint}}",
    ]
    recipe = with_block(
        grid(place, [0.1 * i for i in range(8)]), evaluate={"command": command, "cpus": 64}
    )
    process = spawn("sweep", recipe, place / "out", *MACHINE)
    until(started.exists)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    finish(process, 60)
    assert time.monotonic() - began < 10
    assert started.read_text() == "x\n"
