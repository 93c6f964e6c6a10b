"""Nodes of a Ray cluster that see each other over a network only, each at its own address.

A node is a namespace of network, with a host name of its own, on a bridge that lies in a further
namespace: nothing of this machine's own network is touched. Disks are shared.

All processes are in one namespace of processes too. Its first is `cat`, which ends when its input
does: with it the kernel ends all others, even if this process is killed, and networks go with the
last process inside.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("ip", "mount", "nsenter", "unshare")
UNSHARE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
PROBE = """
mount -t tmpfs none /run
ip link add type bridge
ip link add type veth
"""
FIRST = """
mount -t tmpfs none /run
ip link add bridge type bridge
ip link set bridge up
echo ready
exec cat
"""
"""Of `/run` the others see nothing: there `ip` would note names for anybody on the machine."""
HOST = """
ip netns add $0
ip link add port-$0 type veth peer name eth0 netns $0
ip link set port-$0 master bridge up
ip -n $0 address add $1/24 dev eth0
ip -n $0 link set eth0 up
ip -n $0 link set lo up
"""
INSIDE = 'echo "$0" > /proc/sys/kernel/hostname; cd "$1"; shift; exec "$@"'
Process = subprocess.Popen[str]
ROOT = Path(__file__).parents[1]
PORT = 6379
OBJECT_STORE_BYTES = 80_000_000
START_S = 200
"""A node takes 5 to 8 s on a machine that does nothing else."""
ENVIRONMENT = {
    # Beside a busy suite a process may wait for a minute, and is not lost for that.
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": "20",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_agent_register_timeout_ms": "300000",
    # Else workers get next to nothing of cores on which anything else runs.
    "RAY_worker_niceness": "0",
    # Every node sees the memory of the whole machine, and what else runs on it.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}


def missing() -> str | None:
    """What it takes to make namespaces, and is not here; None where all is."""
    if os.geteuid():
        return "root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return " and ".join(f"`{program}`" for program in absent)
    command = [*UNSHARE, "sh", "-ec", PROBE]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        f"permission for namespaces and bridges: {tried.stderr.strip()}"
        if tried.returncode
        else None
    )


class Hosts:
    """Namespaces, by the names of the hosts that they are."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        """Of the hosts there are."""
        self._begun: list[Process] = []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._first = self._begin([*UNSHARE, "sh", "-ec", FIRST], **pipes)

    def _begin(self, command: list[str], **streams: Any) -> Process:
        self._begun.append(subprocess.Popen(command, text=True, **streams))
        return self._begun[-1]

    @property
    def _enter(self) -> list[str]:
        inside = f"/proc/{self._first.pid}/ns"
        places = {"mount": "mnt", "net": "net", "pid": "pid_for_children"}
        return ["nsenter", *(f"--{kind}={inside}/{name}" for kind, name in places.items())]

    def add(self, name: str, address: str) -> None:
        """One more, in the same network of 256."""
        if not self.addresses:
            assert self._first.stdout
            assert self._first.stdout.readline() == "ready\n"
        command = [*self._enter, "sh", "-ec", HOST, name, address]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.addresses[name] = address

    def spawn(self, name: str, *command: object, **streams: Any) -> Process:
        """Begin a command on a host, in the root of the repository."""
        where = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts"]
        inside = ["sh", "-ec", INSIDE, name, str(ROOT), *map(str, command)]
        return self._begin([*self._enter, *where, *inside], **streams)

    def close(self) -> None:
        """End every process, and with them the networks."""
        self._first.kill()
        for process in self._begun:
            process.wait(START_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()


class Driver:
    """`tests.merging` on the head's host: merges whatever it is told to."""

    def __init__(self, cluster: Cluster) -> None:
        command = [sys.executable, "-m", "tests.merging", cluster.address, len(cluster.hosts)]
        self._log = cluster.folder / "driver.log"
        with self._log.open("w") as log:
            self._process = cluster.spawn(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self.addresses: dict[str, str] = self._answer()
        """Of Ray's nodes, by the names of their hosts, as Ray has them."""

    def merge(self, recipe: Path, out: Path, **options: Any) -> dict[str, Any]:
        """Merge on the cluster: `raymerge.merge` with these options; returns its result."""
        assert self._process.stdin
        words = {"recipe": str(recipe), "out": str(out), "options": options}
        print(json.dumps(words), file=self._process.stdin, flush=True)
        result: dict[str, Any] = self._answer()
        return result

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return json.loads(line)


class Cluster:
    """A Ray on hosts of its own, one node and one CPU on each.

    Args:
        hosts: Where; the first is the head.
        folder: For what Ray writes, of a short name, for sockets lie in it.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts.addresses
        self.folder = folder
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        self._namespaces = hosts
        self._head, *others = self.hosts
        self.address = f"{self.hosts[self._head]}:{PORT}"
        head = ["--head", "--port", PORT, "--include-dashboard", "false"]
        self._await({self._head: self._start(self._head, *head)})
        self._await({name: self._start(name, "--address", self.address) for name in others})

    def _start(self, name: str, *flags: object) -> Process:
        size = ("--num-cpus", 1, "--memory", 2 * 2**30, "--object-store-memory", OBJECT_STORE_BYTES)
        place = ("--node-ip-address", self.hosts[name], "--temp-dir", self.folder / name)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *place, *size]
        with self._log(name).open("w") as log:
            return self.spawn(*command, *flags, host=name, stdout=log, stderr=subprocess.STDOUT)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _await(self, starting: dict[str, Process]) -> None:
        give_up_s = time.monotonic() + START_S
        for name, process in starting.items():
            while "Ray runtime started" not in (said := self._log(name).read_text()):
                assert process.poll() is None, said
                assert time.monotonic() < give_up_s, said
                time.sleep(0.1)

    def spawn(self, *command: object, host: str | None = None, **streams: Any) -> Process:
        """Begin a command that knows the cluster's token, on the head or another host."""
        return self._namespaces.spawn(host or self._head, *command, env=self.environment, **streams)


@contextmanager
def cluster(number: int) -> Iterator[Cluster]:
    """A Ray cluster of so many nodes at 10.77.0.1 and up."""
    with ExitStack() as stack:
        folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        path = Path(stack.enter_context(folder))
        hosts = Hosts()
        stack.callback(hosts.close)
        for n in range(1, number + 1):
            hosts.add(f"node-{n}", f"10.77.0.{n}")
        yield Cluster(hosts, path)
