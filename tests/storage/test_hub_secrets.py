"""Neither a token nor a signed address leaves: planted, then looked for wherever text comes out."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest

from raymerge.errors import RaymergeError
from raymerge.storage.hub import HubFolder
from raymerge.storage.hub_upload import HubDestination
from tests.servers.hub_state import Fault, Hub

TOKEN = "hf_plantedTokenOfATest"
SIGNATURE = "cdn-secret"
SHARD = "model.safetensors"
CONTENT = bytes(range(256)) * 1000
SCRIPT = """
import logging, sys
from raymerge.storage.hub import HubFolder
logging.basicConfig(level=sys.argv[1])
folder = HubFolder("o/m")
pin = folder.pin("model.safetensors")
print(folder.fetch("model.safetensors", 0, 9, pin).nbytes, "bytes fetched")
print(folder.cached_path("model.safetensors", pin))
"""


@pytest.fixture
def private_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens[TOKEN] = "write"
    hub.add("o/m", {SHARD: CONTENT, "config.json": b"{}"}, private=True)
    return hub


def clean(text: str | bytes) -> bool:
    content = text.encode() if isinstance(text, str) else text
    return TOKEN.encode() not in content and SIGNATURE.encode() not in content


def told(error: BaseException) -> Iterator[str | bytes]:
    yield from (str(error), repr(error), "".join(traceback.format_exception(error)))
    yield pickle.dumps(error)


def test_what_is_sent_to_workers_has_no_secret(private_hub: Hub) -> None:
    folder = HubFolder("o/m")
    folder.fetch(SHARD, 0, 9, folder.pin(SHARD))
    assert private_hub.authorized["resolve"] == 1
    out = HubDestination("o/m")
    out.open(private=True)
    record = out.add(SHARD, b"content")
    for each in (folder, out, record):
        assert clean(pickle.dumps(each))
        assert clean(repr(each))
    assert clean(folder.location)


FAILURES: dict[str, tuple[str, Callable[[HubFolder], object]]] = {
    "api": ("api", lambda _: HubFolder("o/m@other")),
    "resolve": ("resolve", lambda folder: folder.fetch(SHARD, 0, 9, folder.pin(SHARD))),
    "cdn": ("cdn", lambda folder: folder.fetch(SHARD, 0, 9, folder.pin(SHARD))),
    "head": ("head", lambda folder: folder.cached_path(SHARD, folder.pin(SHARD))),
    "cdn of a download": ("cdn", lambda folder: folder.cached_path(SHARD, folder.pin(SHARD))),
    "put": ("put", lambda _: HubDestination("o/m").add(SHARD, b"content")),
    "batch": ("batch", lambda _: HubDestination("o/m").add(SHARD, b"content")),
    "commit": (
        "commit",
        lambda folder: HubDestination("o/m").commit(
            [], {"a": b"b"}, message="M", parent=folder.name.revision
        ),
    ),
}


@pytest.mark.parametrize(("kind", "call"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_no_error_has_a_secret_even_if_the_server_says_it(
    private_hub: Hub, kind: str, call: Callable[[HubFolder], object], status: int
) -> None:
    folder = HubFolder("o/m")
    why = f"Bearer {TOKEN} is not welcome"
    private_hub.fault(kind, Fault(status=status, why=why, headers={"X-Error-Message": why}))
    with pytest.raises(RaymergeError) as caught:
        call(folder)
    assert all(clean(text) for text in told(caught.value))
    assert "o/m" in str(caught.value)


def run(level: str) -> str:
    """All that a process says that reads a file by range and another time through the cache."""
    command = [sys.executable, "-c", SCRIPT, level]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "9 bytes fetched" in done.stdout
    return done.stdout + done.stderr


def test_no_log_has_a_secret(private_hub: Hub) -> None:
    """The library warns of addresses that it tries again, and its transport lists all."""
    private_hub.fault("cdn", Fault(cut_after=9))
    private_hub.fault("cdn", Fault(cut_after=100_000))
    text = run("INFO")
    assert "Trying to resume download" in text
    assert f"{private_hub.cdn}/blob/" in text
    assert clean(text)


@pytest.mark.usefixtures("private_hub")
def test_not_even_a_log_for_debugging_has_the_token() -> None:
    assert TOKEN not in run("DEBUG")
