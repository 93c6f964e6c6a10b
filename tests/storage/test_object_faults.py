"""What goes wrong on the way: asked again where that helps, told in a line where it does not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError, StorageError
from raymerge.storage.objects import ObjectFolder, ObjectStore
from raymerge.storage.patience import Patience
from raymerge.storage.store import Access
from raymerge.storage.urls import destination
from tests.servers.seaweed import S3
from tests.storage import interposer
from tests.storage.interposer import Fault, Interposer, interposed, refuse

CONTENT = bytes(range(256)) * 40
FAST = Patience(total_s=5.0, first_contact_s=4.0, pause_s=0.01, longest_pause_s=0.1)
PASSING: dict[str, Fault] = {
    "slow down": refuse("503 Slow Down", "SlowDown"),
    "internal": refuse("500 Internal Server Error", "InternalError"),
    "too many": refuse("429 Too Many Requests", ""),
    "request timeout": refuse("400 Bad Request", "RequestTimeout"),
    "gateway": refuse("502 Bad Gateway", ""),
    "reset": interposer.reset,
    "reset in body": interposer.reset_in_body,
    "cut short": interposer.cut_short,
    "narrower": interposer.narrower,
    "stall": interposer.stall,
    "hang": interposer.hang,
}


@pytest.fixture
def between(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Interposer]:
    with interposed(s3.endpoint) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


def folder_of(s3: S3, patience: Patience = FAST, **options: str) -> ObjectFolder:
    options = {"read_timeout": "1s", **options}
    return ObjectFolder(destination(s3.url("m")), Access(options=options), patience=patience)


def store_of(s3: S3) -> ObjectStore:
    access = Access(options={"read_timeout": "1s"})
    return ObjectStore(destination(s3.url("m")), access, patience=FAST)


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_a_range_comes_whole_after_what_passes(s3: S3, between: Interposer, fault: Fault) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    pin = folder.pin("a")
    between.faults.extend([fault, fault])

    read = folder.fetch("a", 100, 9000, pin)

    assert bytes(read) == CONTENT[100:9000]
    assert folder.retries == 2
    assert not between.faults


@pytest.mark.parametrize("name", ["slow down", "reset", "cut short", "hang"])
def test_a_listing_comes_after_what_passes(s3: S3, between: Interposer, name: str) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    between.faults.append(PASSING[name])

    assert folder.sizes() == {"a": len(CONTENT)}
    assert folder.retries == 1


def test_patience_ends(s3: S3, between: Interposer) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    pin = folder.pin("a")
    between.faults.extend([PASSING["slow down"]] * 500)
    start = time.monotonic()

    with pytest.raises(SourceError, match=r"refused for the moment \(503 SlowDown") as caught:
        folder.fetch("a", 0, 10, pin)

    assert time.monotonic() - start < 2 * FAST.total_s
    assert caught.value.retryable
    assert f"Tried {folder.retries + 1} times" in caught.value.message
    assert folder.retries > 5


@pytest.mark.parametrize("fault", [interposer.lose_answer, PASSING["slow down"]])
def test_a_created_object_is_ours_although_the_answer_was_lost(
    s3: S3, between: Interposer, fault: Fault
) -> None:
    store = store_of(s3)
    between.faults.append(fault)

    pin = store.create("claim", b"mine")

    assert pin == store.head("claim")
    assert store.create("claim", b"mine") is None


def test_a_replaced_object_is_ours_although_the_answer_was_lost(
    s3: S3, between: Interposer
) -> None:
    store = store_of(s3)
    first = store.put("claim", b"first")
    between.faults.append(interposer.lose_answer)

    second = store.replace("claim", b"second", first)

    assert second == store.head("claim")
    assert store.replace("claim", b"third", first) is None


def test_anothers_object_is_not_ours_because_a_try_was_lost(s3: S3, between: Interposer) -> None:
    store = store_of(s3)
    s3.request("PUT", "m/claim", b"another's")
    between.faults.append(interposer.reset)

    assert store.create("claim", b"mine") is None
    assert s3.request("GET", "m/claim").body == b"another's"


def test_a_conflict_of_two_writers_is_asked_again(s3: S3, between: Interposer) -> None:
    between.faults.append(refuse("409 Conflict", "ConditionalRequestConflict"))

    assert store_of(s3).create("claim", b"mine") is not None


PERMANENT: dict[str, tuple[Fault, str]] = {
    "expired": (refuse("400 Bad Request", "ExpiredToken"), "have expired .*aws sso login"),
    "denied": (refuse("403 Forbidden", "AccessDenied"), "access was denied .*skip_signature"),
    "redirect": (refuse("301 Moved Permanently", ""), "another region .*Set AWS_REGION"),
    "region": (
        refuse("400 Bad Request", "AuthorizationHeaderMalformed", "expecting 'eu-west-1'"),
        "another region .*expecting 'eu-west-1'.*Set AWS_REGION",
    ),
    "clock": (refuse("403 Forbidden", "RequestTimeTooSkewed"), "clock is wrong"),
    "bucket": (refuse("404 Not Found", "NoSuchBucket"), "there is no models .*Check the name"),
    "whole": (refuse("200 OK", ""), "could not be"),
}


@pytest.mark.parametrize(("fault", "message"), PERMANENT.values(), ids=PERMANENT.keys())
def test_what_does_not_pass_is_told_at_once(
    s3: S3, between: Interposer, fault: Fault, message: str
) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    pin = folder.pin("a")
    between.faults.extend([fault] * 9)
    between.requests.clear()

    with pytest.raises(SourceError, match=f"s3://{s3.bucket}/{s3.prefix}m/a.*{message}") as caught:
        folder.fetch("a", 0, 10, pin)
    with pytest.raises((SourceError, StorageError)):
        store_of(s3).put("b", b"x")

    assert len(between.requests) == 2
    assert caught.value.message.count("\n") <= 1
    assert "Debug source" not in caught.value.message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not caught.value.retryable


def test_an_upload_that_is_refused_leaves_nothing(s3: S3, between: Interposer) -> None:
    store = store_of(s3)
    part = bytes(5 * 2**20)

    def send() -> None:
        with store.upload("a", part_bytes=len(part), parts_in_flight=1) as upload:
            upload.write(part)  # begins it
            between.faults.append(refuse("403 Forbidden", "AccessDenied"))
            for _ in range(4):
                upload.write(part)
            upload.finish()

    with pytest.raises(
        StorageError, match="m/a could not be uploaded: access was denied"
    ) as caught:
        send()

    assert not caught.value.retryable
    assert store.pins() == {}
    assert b"<UploadId>" not in s3.uploads().body


def test_a_part_that_is_lost_is_sent_again(s3: S3, between: Interposer) -> None:
    part = bytes(range(256)) * (5 * 2**12)

    with store_of(s3).upload("a", part_bytes=len(part), parts_in_flight=2) as upload:
        upload.write(part)
        between.faults.extend([interposer.reset, refuse("503 Slow Down", "SlowDown")])
        for _ in range(3):
            upload.write(part)
        upload.finish()

    assert not between.faults
    assert s3.request("GET", "m/a").body == part * 4


def test_a_replaced_source_is_named_with_what_was_planned(s3: S3) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    pin = folder.pin("a")
    s3.request("PUT", "m/a", CONTENT[::-1])

    with pytest.raises(SourceError, match="m/a changed since it was planned") as caught:
        folder.fetch("a", 0, 10, pin)

    assert pin.tag in caught.value.message
    assert f"{len(CONTENT)} bytes" in caught.value.message
    with pytest.raises(SourceError, match="changed since it was planned"):
        folder.read("a", 0, 10)


def test_a_server_that_ignores_conditions_is_found_out(s3: S3, between: Interposer) -> None:
    s3.request("PUT", "m/a", CONTENT)
    folder = folder_of(s3)
    other = replace(folder.pin("a"), tag='"another"')

    def ignore(client: socket.socket, _: object) -> None:
        answer = s3.request("GET", "m/a", headers={"Range": "bytes=0-9"})
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        client.sendall(f"HTTP/1.1 206 Partial\r\n{head}\r\n".encode() + answer.body)

    between.faults.append(ignore)

    with pytest.raises(SourceError, match="changed since it was planned"):
        folder.fetch("a", 0, 10, other)


def test_a_range_beyond_the_end_is_not_asked_for(s3: S3, between: Interposer) -> None:
    with pytest.raises(SourceError, match="ends at 10"):
        folder_of(s3).fetch("a", 5, 11, Pin(10, '"x"'))

    assert not between.requests
