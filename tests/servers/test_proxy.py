"""A proxy passes signed requests on untouched, counts them, and does to them what it is told to."""

from __future__ import annotations

import hashlib
import os
import time
from datetime import timedelta
from http.client import HTTPConnection, IncompleteRead
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.servers.faults import AtRandom, Exchange, Fault, Kind, in_turn
from tests.servers.proxy import Proxy
from tests.servers.seaweed import S3

BODY = os.urandom(100_000)
ONCE: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=5)}


@pytest.fixture
def through(s3: S3, s3_proxy: Proxy) -> S3:
    """A place with one object of 100 kB, by way of the proxy, which has seen nothing yet."""
    assert s3.request("PUT", "a", BODY).status == 200
    return s3.at(s3_proxy.endpoint)


def store(s3: S3, **options: Any) -> S3Store:
    return S3Store(s3.bucket, prefix=s3.prefix, **options)


def read(s3: S3, **options: Any) -> bytes:
    return bytes(obstore.get_range(store(s3, **options), "a", start=0, end=len(BODY)))


def test_signed_requests_pass(through: S3, s3_proxy: Proxy) -> None:
    assert read(through) == BODY
    with obstore.open_writer(store(through), "b", buffer_size=5 << 20) as writer:
        for _ in range(11):
            writer.write(bytes(1 << 20))
    assert obstore.head(store(through), "b")["size"] == 11 << 20
    assert s3_proxy.requests == {"GET": 1, "POST": 2, "PUT": 3, "HEAD": 1}
    assert s3_proxy.requests_by_object[f"{through.bucket}/{through.prefix}b"] == 6
    assert s3_proxy.bytes_down >= len(BODY)
    assert (11 << 20) <= s3_proxy.bytes_up < (11 << 20) + 10_000


def test_only_bodies_are_counted(through: S3, s3_proxy: Proxy) -> None:
    assert through.request("GET", "a", headers={"Range": "bytes=10-19"}).body == BODY[10:20]
    assert s3_proxy.bytes_down == 10
    assert s3_proxy.log == [
        Exchange("GET", f"/models/{through.prefix}a", "bytes=10-19", None, 206, 0, 10)
    ]


def test_a_refusal_says_slow_down(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.choose = in_turn(Fault(Kind.REFUSE))
    reply = through.request("PUT", "b", b"x")
    assert reply.status == 503
    assert b"<Code>SlowDown</Code>" in reply.body
    assert through.request("GET", "b").status == 404


def test_a_client_that_tries_again_gets_there(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.choose = in_turn(Fault(Kind.REFUSE), Fault(Kind.RESET), Fault(Kind.TRUNCATE))
    assert read(through) == BODY
    assert s3_proxy.faults == {Kind.REFUSE: 1, Kind.RESET: 1, Kind.TRUNCATE: 1}
    assert s3_proxy.requests == {"GET": 4}


@pytest.mark.parametrize("kind", [Kind.LOSE, Kind.RESET])
def test_a_reset_is_a_reset(through: S3, s3_proxy: Proxy, kind: Kind) -> None:
    s3_proxy.choose = in_turn(Fault(kind))
    # Who is still sending when it happens may be told of a broken pipe.
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        through.request("PUT", "b", bytes(1_000_000))
    # What was lost on the way there was not done; what was lost on the way back was.
    assert through.request("HEAD", "b").status == {Kind.LOSE: 404, Kind.RESET: 200}[kind]


def test_half_of_a_body_is_half(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.choose = in_turn(Fault(Kind.TRUNCATE))
    with pytest.raises(IncompleteRead) as raised:
        through.request("GET", "a")
    assert raised.value.partial == BODY[:50_000]
    assert s3_proxy.bytes_down == 50_000


def test_a_stall_lasts_and_then_ends(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.choose = in_turn(Fault(Kind.STALL, seconds=0.3))
    began = time.monotonic()
    with pytest.raises(IncompleteRead):
        through.request("GET", "a")
    assert time.monotonic() - began >= 0.3


def test_a_client_may_leave_during_a_stall(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.choose = in_turn(Fault(Kind.STALL, seconds=100))
    with pytest.raises(BaseError):
        read(through, retry_config=ONCE, client_options={"timeout": "300ms", "allow_http": "true"})


def test_latency_and_bandwidth_take_their_time(through: S3, s3_proxy: Proxy) -> None:
    s3_proxy.latency_s = 0.1
    s3_proxy.bytes_per_s = 500_000
    began = time.monotonic()
    assert through.request("GET", "a").body == BODY
    assert time.monotonic() - began >= 0.3


def test_faults_are_for_whom_they_concern(through: S3, s3_proxy: Proxy) -> None:
    concerns = lambda exchange: exchange.path.endswith("/b")  # noqa: E731
    s3_proxy.choose = in_turn(Fault(Kind.REFUSE), concerns=concerns)
    statuses = [through.request("GET", name).status for name in "abab"]
    assert statuses == [200, 503, 200, 404]


def test_chance_repeats_itself_in_any_order() -> None:
    names = [str(number) for number in range(500)]
    draws = []
    for order in (names, names[::-1]):
        choose = AtRandom(7, 0.3, [Fault(Kind.REFUSE), Fault(Kind.RESET)])
        draws.append({name: choose(Exchange("GET", f"/b/{name}", "")) for name in order})
    assert draws[0] == draws[1]
    assert 100 <= sum(fault is not None for fault in draws[0].values()) <= 200


def test_all_gets_through_in_spite_of_chance(through: S3, s3_proxy: Proxy) -> None:
    faults = [Fault(Kind.REFUSE), Fault(Kind.LOSE), Fault(Kind.RESET), Fault(Kind.TRUNCATE)]
    s3_proxy.choose = AtRandom(0, 0.3, faults)
    retry: Any = {"backoff": {"init_backoff": timedelta(milliseconds=1)}}
    for _ in range(30):
        got = read(through, retry_config=retry)
        assert hashlib.sha256(got).digest() == hashlib.sha256(BODY).digest()
    assert s3_proxy.faults.total() > 5


def test_expecting_clients_are_told_to_go_on(s3_proxy: Proxy) -> None:
    connection = HTTPConnection(s3_proxy.endpoint.removeprefix("http://"), timeout=5)
    connection.request("PUT", "/models/b", b"x", {"Expect": "100-continue"})
    assert connection.getresponse().status == 403
    connection.close()
