"""A server in a process of its own, on ports that were free, that never outlives who started it."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
GRPC_OFFSET = 10_000
"""How far above a port SeaweedFS listens for gRPC."""
_GUARD = Path(__file__).with_name("guard.py")
_READY_WITHIN_S = 30.0
_ATTEMPTS = 3
"""Between the moment a port is found free and the server's bind, somebody else may take it."""


class ServerError(Exception):
    """A server did not come up; its own last words are in the message."""


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(number: int) -> list[int]:
    """Different ports of loopback that nobody listens on, nor on those `GRPC_OFFSET` above them.

    They lie below those that a system gives to outgoing connections, which come and go.
    """
    candidates = random.SystemRandom().sample(range(10_000, 10_000 + GRPC_OFFSET), 20 * number)
    free = [port for port in candidates if _is_free(port) and _is_free(port + GRPC_OFFSET)]
    return free[:number]


class Server:
    """A running server and its folder. `stop` ends both, and so does the end of this process.

    Args:
        name: What messages call it.
        command: Its command line.
        folder: Where it runs, its home.
        litter: What it makes outside its folder.
        environment: What it is told beside PATH and HOME. Nothing of ours is passed on: no
            credentials, no settings.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        litter: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._name = name
        self._log = folder / "log"
        self._ended = folder / "ended"
        leavings = "\n".join(map(str, [folder, *litter]))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", _GUARD, leavings, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process group: that of the guard and the server."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready`; ServerError if the server ends first, or takes too long."""
        give_up = time.monotonic() + _READY_WITHIN_S
        while not ready():
            ended = self._ended.exists()
            if ended or time.monotonic() > give_up:
                why = f"ended: {self._ended.read_text()}" if ended else "not ready in time"
                said = self._log.read_text(errors="replace")[-2000:]
                raise ServerError(f"{self._name}: {why}. It said:\n{said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and remove its folder: what it holds is worth nothing now."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    name: str,
    launch: Callable[[Path, Sequence[int]], Server],
    ready: Callable[[Sequence[int]], bool],
    *,
    num_ports: int,
    parent: Path | None = None,
) -> tuple[Server, Sequence[int]]:
    """Start a server on free ports and wait for it.

    Args:
        name: What its folder is called.
        launch: From its folder and ports to the server, just started.
        ready: From its ports to whether it serves.
        num_ports: How many ports it listens on.
        parent: Where its folder is made; None is where temporary files go.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        folder = Path(tempfile.mkdtemp(prefix=f"raymerge-{name}-", dir=parent))
        ports = free_ports(num_ports)
        server = launch(folder, ports)
        try:
            server.wait_until(partial(ready, ports))
        except BaseException as error:
            server.stop()
            if not (attempts_left and isinstance(error, ServerError)):
                raise
        else:
            return server, ports
    raise AssertionError("the last attempt returns or raises")


def answers(port: int, path: str = "/", statuses: Sequence[int] = (200,)) -> bool:
    """Whether a server says one of `statuses` to a plain GET."""
    connection = HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status in statuses
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
