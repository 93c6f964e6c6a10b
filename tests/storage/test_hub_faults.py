"""A Hub that has a bad day: what passes is waited for, what does not is said at once."""

from __future__ import annotations

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from huggingface_hub import close_session

from raymerge.errors import SourceError
from raymerge.storage import hub_ranges
from raymerge.storage.hub import HubFolder
from raymerge.storage.hub_retry import OPENING_S, STALL_S
from tests.servers.hub_state import Fault, Hub

CONTENT = random.Random(0).randbytes(300_000)
SHARD = "model.safetensors"


@pytest.fixture
def folder(hub: Hub) -> HubFolder:
    hub.add("o/m", {SHARD: CONTENT})
    opened = HubFolder("o/m")
    assert opened.fetch(SHARD, 0, 10, opened.pin(SHARD)) == CONTENT[:10]
    hub.counts.clear()
    return opened


def whole(folder: HubFolder) -> bytes:
    return bytes(folder.fetch(SHARD, 0, len(CONTENT), folder.pin(SHARD)))


def test_an_address_that_expired_is_asked_for_again(hub: Hub, folder: HubFolder) -> None:
    hub.expire()
    assert whole(folder) == CONTENT
    assert hub.counts == {"cdn": 2, "resolve": 1}
    assert folder.retries == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_a_server_error_passes(hub: Hub, folder: HubFolder, status: int) -> None:
    hub.fault("cdn", Fault(status=status), times=2)
    assert whole(folder) == CONTENT
    assert folder.retries == 2


def test_a_reset_goes_on_where_it_stopped(hub: Hub, folder: HubFolder) -> None:
    hub.fault("cdn", Fault(cut_after=100_000))
    hub.fault("cdn", Fault(cut_after=0))
    hub.fault("cdn", Fault(cut_after=70_000))
    assert whole(folder) == CONTENT
    assert folder.retries == 3
    assert hub.counts["cdn"] == 4


@pytest.mark.parametrize(
    "headers",
    [{"RateLimit": '"resolvers";r=0;t=2'}, {"Retry-After": "2"}],
    ids=["ratelimit", "retry-after"],
)
def test_a_rate_limit_is_waited_for_as_told(
    hub: Hub, folder: HubFolder, headers: dict[str, str]
) -> None:
    hub.expire()
    hub.fault("resolve", Fault(status=429, headers=headers))
    began = time.monotonic()
    assert whole(folder) == CONTENT
    assert 2 <= time.monotonic() - began < 6
    assert folder.retries == 2


def test_the_api_has_rate_limits_too(hub: Hub) -> None:
    hub.add("o/m", {SHARD: CONTENT})
    hub.fault("api", Fault(status=429, headers={"RateLimit": '"api";r=0;t=1'}))
    folder = HubFolder("o/m")
    assert folder.retries == 1
    assert hub.counts["api"] == 2


def test_a_stall_is_given_up(hub: Hub, folder: HubFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_ranges, "TIMEOUT", 0.3)
    hub.fault("cdn", Fault(cut_after=5000, stall_s=5))
    began = time.monotonic()
    assert whole(folder) == CONTENT
    assert time.monotonic() - began < 4
    assert folder.retries == 1


def test_a_trickle_is_a_stall(hub: Hub, folder: HubFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a socket's timeout away, and would keep a merge for days."""
    monkeypatch.setattr(hub_ranges, "STALL_S", 0.5)
    hub.fault("cdn", Fault(drip_s=0.1))
    began = time.monotonic()
    assert whole(folder) == CONTENT
    assert time.monotonic() - began < 5
    assert folder.retries == 1


def test_other_content_is_a_change(hub: Hub, folder: HubFolder) -> None:
    pin = folder.pin(SHARD)
    sha = folder.name.revision
    file = hub.repos["o/m"].commits[sha][SHARD]
    hub.blobs[file.sha256] = CONTENT[:-1]
    with pytest.raises(SourceError, match=f"{SHARD} changed since it was planned: found 299999"):
        folder.fetch(SHARD, 0, 100, pin)
    with pytest.raises(SourceError, match="changed since it was planned"):
        folder.fetch(SHARD, 299_999, 300_000, pin)
    hub.add("o/m", {SHARD: CONTENT[::-1]})
    hub.repos["o/m"].commits[sha] = dict(
        hub.repos["o/m"].commits[hub.repos["o/m"].branches["main"]]
    )
    with pytest.raises(SourceError, match=r"changed since it was planned: found content") as caught:
        HubFolder(folder.location).fetch(SHARD, 0, 100, pin)
    assert not caught.value.retryable


def test_a_commit_that_is_gone_is_said(hub: Hub, folder: HubFolder) -> None:
    pin = folder.pin(SHARD)
    del hub.repos["o/m"].commits[folder.name.revision]
    with pytest.raises(SourceError, match="has no revision"):
        HubFolder(folder.location).fetch(SHARD, 0, 100, pin)


def test_patience_ends(hub: Hub, folder: HubFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymerge.storage.hub.READING_S", 1.0)
    hub.fault("cdn", Fault(status=503, why="be patient"), times=50)
    began = time.monotonic()
    with pytest.raises(SourceError, match="HTTP 503: be patient") as caught:
        whole(folder)
    assert caught.value.retryable
    assert time.monotonic() - began < 5


@dataclass(frozen=True)
class Refusal:
    location: str
    message: str
    token: str | None = None


ABSENT = (
    "hf://o/absent@main: there is no such repository, or it is private; check the name. "
    "There is no token: `hf auth login` or HF_TOKEN gives one."
)
GATED = "it is gated, and access was not granted; accept its terms at http://127.0.0.1:[0-9]+/o/g. "
REFUSALS = {
    "absent": Refusal("o/absent", ABSENT),
    "absent with a token": Refusal("o/absent", "The token in use has no access.", "hf_reader"),
    "private": Refusal("o/p", "or it is private; check the name. There is no token"),
    "wrong token": Refusal("o/m", "HTTP 401: .* the token is wrong or has expired", "hf_wrong"),
    "revision": Refusal("o/m@v9", "o/m has no revision v9; give a branch, tag or full commit"),
    "commit": Refusal(f"o/m@{'0' * 40}", "has no revision 0{40}"),
    "gated": Refusal("o/g", f"{GATED}There is no token"),
    "gated with a token": Refusal("o/g", f"{GATED}The token in use has no access", "hf_reader"),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("cached", ["cached", "streamed"])
def test_what_is_refused_is_said_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, cached: str
) -> None:
    hub.tokens["hf_reader"] = "read"
    hub.add("o/m", {SHARD: CONTENT})
    hub.add("o/g", {SHARD: CONTENT, "config.json": b"{}"}, gated=True)
    hub.add("o/p", {SHARD: CONTENT}, private=True)
    if refusal.token:
        monkeypatch.setenv("HF_TOKEN", refusal.token)
    began = time.monotonic()
    with pytest.raises(SourceError, match=refusal.message) as caught:
        HubFolder(refusal.location, cache=cached == "cached").read("config.json", 0, 2)
    assert time.monotonic() - began < 2
    assert not caught.value.retryable
    assert caught.value.__cause__ is None


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_there_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raymerge.storage.hub.OPENING_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://somebody:password@127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    with pytest.raises(SourceError, match=r"http://127.0.0.1:\d+ cannot be reached") as caught:
        HubFolder("o/m")
    assert caught.value.retryable
    assert "password" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_silent_hub_ends_within_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a tenth of the times that it has."""
    assert OPENING_S + STALL_S < 30
    monkeypatch.setattr("raymerge.storage.hub.OPENING_S", OPENING_S / 10)
    monkeypatch.setattr("raymerge.storage.hub.STALL_S", STALL_S / 10)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        began = time.monotonic()
        with pytest.raises(SourceError, match=r"does not answer .*; check network and proxy"):
            HubFolder("o/m")
        assert time.monotonic() - began < 6


def test_a_proxy_without_ranges_is_found_out(hub: Hub, folder: HubFolder) -> None:
    pin = folder.pin(SHARD)
    hub.ranges = False
    assert folder.fetch(SHARD, 0, 100, pin) == CONTENT[:100]
    with pytest.raises(SourceError, match=r"does not serve ranges\. Leave out --no-cache"):
        folder.fetch(SHARD, 100, 200, pin)


# It forgets to close a connection that was being made.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_session_that_others_close_is_opened_again(hub: Hub, folder: HubFolder) -> None:
    """As the library does when any of its threads cannot connect."""
    pin = folder.pin(SHARD)
    spans = [(start, start + 100_000) for start in range(0, 200_000, 2000)]
    with ThreadPoolExecutor(8) as pool:
        parts = [pool.submit(folder.fetch, SHARD, *span, pin) for span in spans]
        while not all(part.done() for part in parts):
            close_session()
            time.sleep(0.05)
    found = [part.result() for part in parts]
    assert all(part == CONTENT[a:b] for part, (a, b) in zip(found, spans, strict=True))
    assert hub.counts["cdn"] >= len(spans)
