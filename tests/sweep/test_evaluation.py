"""An evaluation gives scores or a recorded failure, and leaves nothing running."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raymerge.errors import RecipeError
from raymerge.sweep import evaluation
from raymerge.sweep.evaluation.harness import scores_of
from raymerge.sweep.evaluation.scores import NoScoresError, read_scores
from raymerge.sweep.record import Evaluated
from tests.sweep.blocks import parsed


def evaluated(text: str, *, subset: int | None = None) -> Evaluated:
    found: list[Evaluated] = []
    with evaluation.Pool(parsed(text), on_evaluated=found.append) as pool:
        pool.submit("one", "models/a b", subset=subset)
        pool.wait()
    (only,) = found
    return only


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def command(code: str, *more: str) -> str:
    arguments = json.dumps([sys.executable, "-c", code, "{checkpoint}", "{subset}"])
    return "\n".join([" evaluate:", f"  command: {arguments}", *more])


def test_every_key_is_read() -> None:
    found = parsed(
        command("pass", "  limit_s: 5", "  cpus: 2")
        + """
 gates: {math: 40}
 at_least: {code: {of: coder, minus: 2}}
 subset: [5, 20]
 by: {pareto: [math, chat]}
 keep: 3
 scratch: /dev/shm/sweep
"""
    )
    assert found.tasks == ("math", "code", "chat")
    assert list(found.sources) == ["coder"]
    assert found.subsets == (5, 20, None)
    assert (found.keep, found.limit_s, found.cpus) == (3, 5, 2)
    assert found.scratch == "/dev/shm/sweep"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" gates: {math: 1}", "sweep.yaml:2: gates: needs evaluate"),
        (" evaluate: {limit_s: 5}", "sweep.yaml:2: evaluate: has none; allowed: one of command"),
        (" evaluate: {command: run}", "sweep.yaml:2: command: lacks {checkpoint}"),
        (" evaluate: {command: 'run {chekpoint}'}", "{chekpoint} means nothing"),
        (" evaluate: {python: score}", "allowed: module:function"),
        (" evaluate: {python: 'a:b', limit_s: 0}", "limit_s is 0; allowed: a number above 0"),
        (" evaluate: {python: 'a:b'}\n keep: 0", "sweep.yaml:3: keep is 0; allowed: 1 or more"),
        (
            " evaluate: {python: 'a:b'}\n subset: [20, 5]",
            "sweep.yaml:3: subset: allowed: rising whole",
        ),
        (" evaluate: {command: 'r {checkpoint}'}\n subset: [5]", "the command has no {subset}"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    assert message in str(caught.value)


def test_a_command_is_given_its_arguments_whole() -> None:
    code = (
        "import json,sys; print('hm'); print(json.dumps({sys.argv[1]: 1, 'n': int(sys.argv[2])}))"
    )
    found = evaluated(command(code), subset=7)
    assert found.error is None
    assert found.scores == {str(Path.cwd() / "models/a b"): 1.0, "n": 7.0}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no such model')", "exit code 1; the end of its stderr:\nno such model"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("print('fine')", "its last line is 'fine'"),
        ("pass", "it printed nothing"),
        ("print('{\"math\": NaN}')", "the score of math is nan"),
    ],
)
def test_a_failure_is_recorded_with_its_reason(code: str, message: str) -> None:
    found = evaluated(command(code, " gates: {math: 1}"))
    assert found.scores == {}
    assert message in (found.error or "")


def test_scores_stay_where_a_task_is_lacking() -> None:
    found = evaluated(command("print('{\"math\": 1}')", " gates: {maths: 1}"))
    assert found.error == "no score for maths; it has math. Did you mean 'math'?"
    assert found.scores == {"math": 1}


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess,time; p=subprocess.Popen(['sleep','60']);"
        f"open({str(pid)!r},'w').write(str(p.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    found = evaluated(command(code, "  limit_s: 1"))
    assert "stopped at its limit of 1 s" in (found.error or "")
    assert time.monotonic() - began < 20
    while not has_ended(int(pid.read_text())):
        assert time.monotonic() - began < 20
        time.sleep(0.05)


def test_a_function_is_called_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import os\n"
        "def score(checkpoint, *, split, subset):\n"
        "    print('chatter')\n"
        "    return {'pid': os.getpid(), split: subset}\n"
    )
    found = evaluated(f" evaluate: {{python: '{path}:score'}}", subset=3)
    assert found.error is None
    assert found.scores["search"] == 3
    assert found.scores["pid"] != os.getpid()


@pytest.mark.parametrize(
    "printed", [b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": true}', b'{"a": 1e999}', b"3", b"{}"]
)
def test_rubbish_is_no_score(printed: bytes) -> None:
    with pytest.raises(NoScoresError):
        read_scores(printed)


def test_the_harness_has_one_score_per_task() -> None:
    results: dict[str, dict[str, Any]] = {
        "arc": {"alias": "arc", "acc,none": 0.4, "acc_norm,none": 0.5, "acc_stderr,none": 0.1},
        "gsm": {"exact_match,strict-match": 0.2, "exact_match,flexible-extract": 0.3},
        "wiki": {"word_perplexity,none": 9.0},
    }
    found = scores_of(results, {"wiki": {"word_perplexity": False}}, {"arc": "acc"})
    assert found == {"arc": 0.4, "gsm": 0.3, "wiki": -9.0}


@pytest.mark.ray
def test_on_a_cluster_an_evaluation_is_a_call_of_rays() -> None:
    from raymerge.runtime import ray_cluster

    code = "import os, json; print(json.dumps({'math': 1, 'parent': os.getppid()}))"
    ray_cluster.connect(None, workers=1)
    try:
        free = evaluated(command(code))
        reserving = evaluated(command(code, "  cpus: 1"))
        failed = evaluated(command("raise SystemExit('no model')", "  cpus: 1"))
    finally:
        ray_cluster.disconnect()

    for one in (free, reserving):
        assert one.error is None
        assert one.scores["math"] == 1
        assert int(one.scores["parent"]) != os.getpid()
        assert one.worker.rpartition(":")[2] != str(os.getpid())
    assert failed.scores == {}
    assert "no model" in str(failed.error)
