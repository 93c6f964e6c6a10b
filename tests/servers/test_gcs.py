"""Our stand-in for Google Cloud Storage does what its documentation says, to obstore's content."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import GCSStore

from tests.servers.gcs import Gcs

if TYPE_CHECKING:
    from obstore import UpdateVersion

ONCE: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=5)}


@pytest.fixture
def store(gcs: Gcs) -> GCSStore:
    """What the environment leads to."""
    return GCSStore(gcs.bucket, prefix=gcs.prefix)


@pytest.mark.parametrize(("start", "stop"), [(2, 5), (0, 10), (9, 10), (8, 99)])
def test_a_range_is_that_range(store: GCSStore, start: int, stop: int) -> None:
    obstore.put(store, "a/ä b", b"0123456789")
    got = obstore.get_range(store, "a/ä b", start=start, end=stop)
    assert bytes(got) == b"0123456789"[start:stop]


def test_the_last_bytes_and_those_beyond(store: GCSStore) -> None:
    obstore.put(store, "a", b"0123456789")
    assert bytes(obstore.get(store, "a", options={"range": {"suffix": 3}}).bytes()) == b"789"
    with pytest.raises(GenericError, match="416"):
        obstore.get_range(store, "a", start=10, end=11)


def test_a_wrong_token_is_refused(gcs: Gcs) -> None:
    wrong = GCSStore(gcs.bucket, bearer_token="wrong", retry_config=ONCE)
    with pytest.raises(UnauthenticatedError):
        obstore.put(wrong, "a", b"x")


@pytest.mark.usefixtures("gcs")
def test_a_bucket_that_is_not_there_is_not_found() -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.get(GCSStore("other"), "a")


def test_only_one_creates(store: GCSStore) -> None:
    obstore.put(store, "a", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"second", mode="create")
    assert bytes(obstore.get(store, "a").bytes()) == b"first"


def test_who_compares_with_an_old_version_is_refused(store: GCSStore) -> None:
    put = obstore.put(store, "a", b"first")
    first: UpdateVersion = {"e_tag": put["e_tag"], "version": put["version"]}
    obstore.put(store, "a", b"second", mode=first)
    with pytest.raises(PreconditionError):
        obstore.put(store, "a", b"third", mode=first)
    with pytest.raises(PreconditionError):
        obstore.get(store, "a", options={"if_match": first["e_tag"]})
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a", options={"version": first["version"]})


def test_parts_make_an_object(gcs: Gcs, store: GCSStore) -> None:
    with obstore.open_writer(store, "a", buffer_size=5 << 20) as writer:
        for number in range(11):
            writer.write(bytes([number]) * (1 << 20))
    assert obstore.head(store, "a")["size"] == 11 << 20
    assert bytes(obstore.get_range(store, "a", start=(7 << 20) - 1, length=2)) == b"\x06\x07"
    assert not gcs.inside.uploads


def test_small_parts_are_refused(store: GCSStore) -> None:
    with pytest.raises(GenericError, match="EntityTooSmall"):
        obstore.put(store, "a", bytes(3000), use_multipart=True, chunk_size=1000)
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "a")


def test_a_page_ends_where_the_next_begins(store: GCSStore) -> None:
    names = sorted(f"{folder}/{number}" for folder in "ab" for number in range(1100))
    for name in names:
        obstore.put(store, f"many/{name}", b"")
    listed = [entry["path"] for page in obstore.list(store, "many") for entry in page]
    assert listed == [f"many/{name}" for name in names]
    folders = obstore.list_with_delimiter(store, "many")
    assert list(folders["common_prefixes"]) == ["many/a", "many/b"]
    after = obstore.list(store, "many", offset="many/b/998")
    assert [entry["path"] for page in after for entry in page] == ["many/b/999"]


def test_copies_and_removals(store: GCSStore) -> None:
    obstore.put(store, "a", b"x")
    obstore.copy(store, "a", "b")
    with pytest.raises(AlreadyExistsError):
        obstore.copy(store, "a", "b", overwrite=False)
    obstore.delete(store, "a")
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "a")
    assert bytes(obstore.get(store, "b").bytes()) == b"x"
