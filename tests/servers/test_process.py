"""A server comes up where there is room, and is gone once whoever started it is, anyhow."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.servers.azurite import Azure, azurite, find_azurite
from tests.servers.process import (
    GRPC_OFFSET,
    LOOPBACK,
    Server,
    ServerError,
    answers,
    free_ports,
    start,
)
from tests.servers.seaweed import S3, find_weed, seaweed

_HOLDER = """
import sys, time
from pathlib import Path
from tests.servers import test_process
server, _ = test_process.start_small(Path(sys.argv[1]))
print(server.pid, server.folder, flush=True)
time.sleep(60)
"""


def start_small(parent: Path) -> tuple[Server, Sequence[int]]:
    """A server of web pages, with a file elsewhere."""

    def launch(folder: Path, ports: Sequence[int]) -> Server:
        (parent / "litter").touch()
        command = [sys.executable, "-m", "http.server", "--bind", LOOPBACK, str(ports[0])]
        return Server("small", command, folder, litter=[parent / "litter"])

    return start("small", launch, lambda ports: answers(ports[0]), num_ports=1, parent=parent)


def is_running(process_group: int) -> bool:
    """Whether there is anybody left of it; the dead whom nobody has asked after do not count."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, check=True)
    rows = [line.split() for line in listed.stdout.decode().splitlines()]
    return any(int(group) == process_group and state[0] != "Z" for group, state in rows)


def wait_for_end(process_group: int, folder: Path) -> None:
    give_up = time.monotonic() + 10
    while is_running(process_group) or folder.exists():
        assert time.monotonic() < give_up, (is_running(process_group), folder.exists())
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_who_started_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout is not None
        pid, folder = holder.stdout.readline().decode().split(maxsplit=1)
        assert is_running(int(pid))
        holder.send_signal(number)
        holder.wait()
    wait_for_end(int(pid), Path(folder.strip()))
    assert not list(tmp_path.iterdir())


def test_stop_leaves_nothing(tmp_path: Path) -> None:
    with start_small(tmp_path)[0] as server:
        assert is_running(server.pid)
        assert len(list(tmp_path.iterdir())) == 2
    wait_for_end(server.pid, server.folder)
    assert not list(tmp_path.iterdir())


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    def launch(folder: Path, ports: Sequence[int]) -> Server:
        return Server("sad", ["sh", "-c", f"echo no port {ports[0]}; exit 3"], folder)

    with pytest.raises(ServerError, match=r"sad: ended: 3. It said:\nno port 1\d{4}\n"):
        start("sad", launch, lambda _: False, num_ports=1, parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    def launch(folder: Path, _: Sequence[int]) -> Server:
        return Server("none", ["no-such-program"], folder)

    with pytest.raises(ServerError, match="No such file or directory: 'no-such-program'"):
        start("none", launch, lambda _: False, num_ports=1, parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_port_taken_meanwhile_costs_another_attempt() -> None:
    tried: list[int] = []

    def launch(folder: Path, ports: Sequence[int]) -> Server:
        tried.append(ports[0])
        command = [sys.executable, "-m", "http.server", "--bind", LOOPBACK, str(ports[0])]
        return Server("small", ["false"] if len(tried) == 1 else command, folder)

    server, ports = start("small", launch, lambda ports: answers(ports[0]), num_ports=1)
    with server:
        assert list(ports) == tried[1:]


def test_nothing_of_our_environment_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    (tmp_path / "env").mkdir()
    with Server("env", ["env"], tmp_path / "env", environment={"OURS": "1"}) as server:
        log = server.folder / "log"
        server.wait_until(lambda: "OURS=1" in log.read_text())
        assert "planted" not in log.read_text()


def test_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_second_s3_runs_beside_the_first(s3: S3, tmp_path: Path) -> None:
    weed = find_weed()
    assert weed is not None
    assert s3.request("PUT", "a", b"x").status == 200
    with seaweed(weed, tmp_path) as second:
        assert second.endpoint != s3.endpoint
        assert second.request("GET", f"{s3.prefix}a").status == 404
        port = int(second.endpoint.rpartition(":")[2]) + GRPC_OFFSET
        assert Path(f"/tmp/seaweedfs-s3-grpc-{port}.sock").exists()
    assert s3.request("GET", "a").body == b"x"
    assert not list(tmp_path.iterdir())
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))


def test_a_second_azure_runs_beside_the_first(azure: Azure) -> None:
    program = find_azurite()
    assert program is not None
    with azurite(program) as second:
        assert second.endpoint != azure.endpoint
    assert azure.make_container("still-there")
