"""Azure Blob Storage, by Azurite, its makers' own emulator, on Node.js; all of it in memory."""

from __future__ import annotations

import base64
import hmac
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

from tests.servers.process import LOOPBACK, Server, answers, start

_ACCOUNT = "raymergetest"
_KEY = base64.b64encode(b"not a secret, but as long as one").decode()
_CONTAINER = "models"
_VERSION = "2021-12-02"
_MAX_MIB = 1024
# Its usual 5 s are so short that a client's next request may meet the connection's end.
_KEEP_ALIVE_S = 60


@dataclass(frozen=True, slots=True)
class Azure:
    """A place in a container, and what a client needs to reach it."""

    endpoint: str
    """With the account as its path, as the emulator has it."""
    account: str
    key: str
    container: str
    prefix: str
    """Ends in a slash, unless it is empty. Each test has its own."""
    process_group: int
    """Of the server."""

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that Azure clients know."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": self.key,
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_ALLOW_HTTP": "true",
        }

    def url(self, path: str = "") -> str:
        """`az://` of a path here."""
        return f"az://{self.container}/{self.prefix}{path}"

    def make_container(self, container: str) -> bool:
        """Make a container; returns whether it is there now."""
        path = f"/{self.account}/{container}"
        headers = {"x-ms-date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S GMT}"}
        headers["x-ms-version"] = _VERSION
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        # Eleven headers that this request does not have, then ours, then what it is about.
        signed = "PUT\n" + "\n" * 11 + f"{lines}/{self.account}{path}\nrestype:container"
        digest = hmac.digest(base64.b64decode(self.key), signed.encode(), "sha256")
        signature = base64.b64encode(digest).decode()
        headers["Authorization"] = f"SharedKey {self.account}:{signature}"
        host = self.endpoint.removeprefix("http://").partition("/")[0]
        connection = HTTPConnection(host, timeout=30)
        try:
            connection.request("PUT", f"{path}?restype=container", headers=headers)
            return connection.getresponse().status in {201, 409}
        finally:
            connection.close()


def find_azurite() -> tuple[str, str] | None:
    """Node.js and the emulator's script, if `make` found npm to install it with."""
    script = Path(sys.prefix, "azurite/node_modules/azurite/dist/src/blob/main.js")
    node = shutil.which("node")
    return (node, str(script)) if node is not None and script.exists() else None


@contextmanager
def azurite(program: Sequence[str]) -> Iterator[Azure]:
    """A server with one empty container."""

    def launch(folder: Path, ports: Sequence[int]) -> Server:
        return _launch(program, folder, ports[0])

    def ready(ports: Sequence[int]) -> bool:
        is_up = answers(ports[0], f"/{_ACCOUNT}?comp=list", statuses=(403,))
        return is_up and _place(ports[0], 0).make_container(_CONTAINER)

    server, ports = start("azurite", launch, ready, num_ports=1)
    with server:
        yield _place(ports[0], server.pid)


def _place(port: int, process_group: int) -> Azure:
    address = f"http://{LOOPBACK}:{port}/{_ACCOUNT}"
    return Azure(address, _ACCOUNT, _KEY, _CONTAINER, "", process_group)


def _launch(program: Sequence[str], folder: Path, port: int) -> Server:
    address = [f"--blobHost={LOOPBACK}", f"--blobPort={port}"]
    address += [f"--blobKeepAliveTimeout={_KEEP_ALIVE_S}", "--disableProductStyleUrl"]
    memory = ["--inMemoryPersistence", f"--extentMemoryLimit={_MAX_MIB}"]
    # Clients are newer than the emulator, and ask for versions of the protocol it has not heard of.
    lenient = ["--loose", "--skipApiVersionCheck"]
    quiet = ["--silent", "--disableTelemetry"]
    return Server(
        "azurite",
        [*program, *address, *memory, *lenient, *quiet],
        folder,
        environment={"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_KEY}"},
    )
