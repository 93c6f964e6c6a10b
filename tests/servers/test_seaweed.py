"""S3 as our tests know it does what S3 does."""

from __future__ import annotations

from dataclasses import replace

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

from tests.servers.seaweed import S3


@pytest.fixture
def store(s3: S3) -> S3Store:
    """What the environment leads to."""
    return S3Store(s3.bucket, prefix=s3.prefix)


def test_a_range_is_that_range(store: S3Store) -> None:
    obstore.put(store, "a", b"0123456789")
    assert bytes(obstore.get_range(store, "a", start=2, end=5)) == b"234"


def test_a_wrong_secret_is_refused(s3: S3, store: S3Store) -> None:
    obstore.put(store, "a", b"x")
    assert s3.request("GET", "a").body == b"x"
    reply = replace(s3, secret_key="wrong").request("GET", "a")
    assert reply.status == 403
    assert b"SignatureDoesNotMatch" in reply.body


def test_only_one_creates(store: S3Store) -> None:
    obstore.put(store, "a", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"second", mode="create")
    assert bytes(obstore.get(store, "a").bytes()) == b"first"


def test_who_compares_with_an_old_version_is_refused(store: S3Store) -> None:
    first = obstore.put(store, "a", b"first")
    obstore.put(store, "a", b"second", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "a", b"third", mode={"e_tag": first["e_tag"]})


def test_an_upload_under_way_is_listed(s3: S3) -> None:
    assert b"<UploadId>" not in s3.uploads().body
    started = s3.request("POST", "a", query={"uploads": ""})
    upload = started.body.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
    assert upload.encode() in s3.uploads().body
    assert s3.request("DELETE", "a", query={"uploadId": upload}).status == 204
    assert b"<UploadId>" not in s3.uploads().body


def test_buckets_are_made_as_asked(s3: S3) -> None:
    assert replace(s3, bucket="other").request("GET", "a").status == 404
    assert s3.make_bucket("other")
    assert s3.make_bucket("other")
    assert not s3.make_bucket("No Name")
    other = replace(s3, bucket="other")
    assert other.request("PUT", "a", b"x").status == 200
    assert other.request("GET", "a").body == b"x"
