"""`raymerge submit` against a real Ray head with its job server, token authentication on."""

from __future__ import annotations

import importlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from raymerge.errors import ClusterError
from raymerge.runtime import job_server
from tests.conftest import Done, Place, finish, shard_hashes, spawn

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # Ray's client and the aiohttp of today.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]
START_S = 60
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
USE = ("--device", "cpu", "--workers", 1, "--memory", "1GiB", "--shard-size", "6kB")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head in processes of its own."""

    address: str
    token: str
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """Of those who may submit."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def get(self, path: str) -> Any:
        """An answer of the job server."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.get(f"{self.address}{path}", headers=headers, timeout=10)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Details of all jobs, by submission id."""
        return {job["submission_id"]: job for job in self.get("/api/jobs/").json()}

    def await_end(self, submission_id: str) -> dict[str, Any]:
        """Details of a job that has ended."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            job = self.jobs()[submission_id]
            if job["status"] in ENDED:
                return job
            time.sleep(0.2)
        raise TimeoutError(job)


@contextmanager
def running_head() -> Iterator[Head]:
    address = f"http://127.0.0.1:{(dashboard := free_port())}"
    token = secrets.token_hex(32)
    ports = {
        "--port": 0,
        "--dashboard-port": dashboard,
        "--dashboard-agent-listen-port": free_port(),
        "--ray-client-server-port": free_port(),
    }
    flags = [str(part) for pair in ports.items() for part in pair]
    local = ["--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"]
    size = ["--num-cpus", "2", "--object-store-memory", "100000000"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        # Jobs find `raymerge` as they would on a node.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
    }
    # Short, for sockets lie in it; its own, for Ray notes there which cluster `auto` means.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        place = [*local, "--temp-dir", folder]
        process = subprocess.Popen(
            [*command, *flags, *place, *size], env=environment, stdout=subprocess.DEVNULL
        )
        head = Head(address, token, process)
        try:
            await_answer(head)
            yield head
        finally:
            process.terminate()
            process.wait(START_S)


def await_answer(head: Head) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and head.process.poll() is None:
        try:
            if head.get("/api/jobs/").ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"Ray did not start: exit code {head.process.poll()}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as running:
        yield running


Submit = Callable[..., Done]


@pytest.fixture
def submit(head: Head, place: Place) -> Submit:
    """The command line, in a process of its own."""

    def run(recipe: Path, out: str, *flags: object) -> Done:
        target = (recipe, place / out, "--address", head.address)
        return finish(spawn("submit", *target, *flags, **head.environment), 120)

    return run


def test_a_merge_that_is_submitted_has_the_bytes_of_a_local_one(
    head: Head, submit: Submit, place: Place
) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    local = place.merge(recipe, "local", "--json", "--shard-size", "6kB").json
    done = submit(recipe, "out", *USE, "--workers", 2, "--submission-id", "mine")

    assert done.rc == 0, done.err
    assert shard_hashes(place / "out") == shard_hashes(place / "local")
    assert f"submitted mine to {head.address}" in done.err
    assert "engine ray (as asked)" in done.out
    assert f"plan {local['digest']}" in done.out.splitlines()[-1]

    job = head.jobs()["mine"]
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["raymerge", "merge", "ties.yaml", str(place / "out")]
    # Nothing of the token, in details or log, whoever may read those.
    log = head.get("/api/jobs/mine/logs").text
    assert head.token not in json.dumps(job) + log
    again = submit(recipe, "out", *USE, "--submission-id", "mine", "--json")
    assert (again.rc, again.error["type"]) == (1, "ClusterError")
    assert "mine already exists" in again.error["message"]


def test_json_is_the_driver_s_document_and_its_exit_code(submit: Submit, place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("linear")
    done = submit(recipe, "out", *USE, "--json")
    assert done.rc == 0, done.err
    local = place.merge(recipe, "local", "--json", "--shard-size", "6kB").json
    assert done.json["shards"] == local["shards"]
    assert done.json["engine"] == "ray"
    assert "Running entrypoint" in done.err

    other = submit(place.any_recipe("karcher"), "out", *USE, "--json")
    assert (other.rc, other.error["type"]) == (2, "ConflictError")
    (place / "a" / "model.safetensors.index.json").unlink()
    for shard in (place / "a").glob("*.safetensors"):
        shard.unlink()
    gone = submit(recipe, "gone", *USE, "--json")
    assert (gone.rc, gone.error["type"]) == (3, "SourceError")


def test_without_waiting_it_prints_the_id_and_how_to_follow(
    head: Head, submit: Submit, place: Place
) -> None:
    place.llamas()
    done = submit(place.any_recipe("linear"), "out", *USE, "--no-wait")
    assert done.rc == 0, done.err
    submission_id = done.out.strip()
    follow = f"ray job logs --address {head.address} --follow {submission_id}"
    assert follow in done.err
    assert head.await_end(submission_id)["driver_exit_code"] == 0
    followed = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *shlex.split(follow)[1:]],
        env={**os.environ, **head.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "21 tensors" in followed.stdout

    stated = submit(place.any_recipe("linear"), "out2", *USE, "--no-wait", "--json")
    assert stated.json.keys() == {"submission_id", "address"}
    head.await_end(stated.json["submission_id"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_stops_following_and_not_the_job(
    head: Head, place: Place, number: signal.Signals, code: int
) -> None:
    place.llamas()
    process, submission_id = interrupted(head, place, number)
    done = finish(process)
    assert done.rc == code
    assert "the job goes on" in done.err
    assert f"ray job logs --address {head.address} --follow {submission_id}" in done.err
    assert f"ray job stop --address {head.address} {submission_id}" in done.err
    assert head.await_end(submission_id)["status"] == "SUCCEEDED"
    assert (place / "out" / "model.safetensors.index.json").exists()


def test_an_interrupt_stops_the_job_where_that_was_asked_for(head: Head, place: Place) -> None:
    place.llamas()
    process, submission_id = interrupted(head, place, signal.SIGINT, "--stop-on-interrupt")
    done = finish(process)
    assert done.rc == 130
    assert "stopped the job" in done.err
    assert head.await_end(submission_id)["status"] == "STOPPED"
    assert not (place / "out" / "model.safetensors.index.json").exists()


def interrupted(
    head: Head, place: Place, number: signal.Signals, *flags: object
) -> tuple[subprocess.Popen[str], str]:
    """A submission that is signalled as soon as it follows its job, and the job's id."""
    target = (place.any_recipe("ties"), place / "out", "--address", head.address)
    process = spawn("submit", *target, *USE, *flags, **head.environment)
    assert process.stderr is not None
    words = process.stderr.readline().split()
    assert words[:1] == ["submitted"], words
    time.sleep(0.5)
    process.send_signal(number)
    return process, words[1]


def test_another_version_is_told_before_the_work(
    head: Head, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.llamas()
    monkeypatch.setattr("raymerge.runtime.submit.raymerge_version", lambda: "9.9.9")
    with in_this_process(head, monkeypatch):
        recipe = place.any_recipe("linear")
        done = place.run("submit", recipe, place / "out", "--address", head.address, "--json")
    assert (done.rc, done.error["type"]) == (1, "ClusterError")
    assert "submitted for 9.9.9" in done.error["message"]
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
    ],
)
def test_who_has_not_the_token_is_told_where_it_goes(
    head: Head, place: Place, environment: dict[str, str], words: str
) -> None:
    target = (place.any_recipe("linear"), place / "out", "--address", head.address)
    done = finish(spawn("submit", *target, "--json", **environment))
    assert (done.rc, done.error["type"]) == (1, "ClusterError")
    assert words in done.error["message"]
    assert "RAY_AUTH_MODE=token" in done.error["message"]
    assert head.token not in done.err + done.out


def test_a_head_that_is_lost_is_an_error_that_says_how_to_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.llamas()
    monkeypatch.setattr(job_server, "LOST_S", 3.0)
    with running_head() as head, in_this_process(head, monkeypatch):
        job = job_server.start_job(
            head.address, "echo begun; sleep 60", submission_id="lost", runtime_env={}
        )
        lines = []

        def lose(line: str) -> None:
            lines.append(line)
            if line == "begun":
                head.process.terminate()

        with pytest.raises(ClusterError) as caught:
            job.follow(lose)
    assert lines.count("begun") == 1
    assert caught.value.retryable
    assert "ray job logs" in caught.value.__notes__[0]


@contextmanager
def in_this_process(head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Ray's client in this process use the head's token, and forget it again."""
    raylet = importlib.import_module("ray._raylet")

    def forget() -> None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    with monkeypatch.context() as patched:
        for name, value in head.environment.items():
            patched.setenv(name, value)
        patched.setenv("RAY_API_SERVER_ADDRESS", head.address)
        forget()
        yield
    forget()
