"""Azure as our tests know it does what Azure does."""

from __future__ import annotations

from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError, PreconditionError
from obstore.store import AzureStore

from tests.servers.azurite import Azure


@pytest.fixture
def store(azure: Azure) -> AzureStore:
    """What the environment leads to."""
    return AzureStore(azure.container, prefix=azure.prefix)


def test_a_range_is_that_range(store: AzureStore) -> None:
    obstore.put(store, "a", b"0123456789")
    assert bytes(obstore.get_range(store, "a", start=2, end=5)) == b"234"


def test_a_wrong_key_is_refused(azure: Azure) -> None:
    wrong = AzureStore(azure.container, account_key="bm90IHRoZSBrZXk=")
    with pytest.raises(PermissionDeniedError):
        obstore.put(wrong, "a", b"x")


def test_only_one_creates(store: AzureStore) -> None:
    obstore.put(store, "a", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "a", b"second", mode="create")
    assert bytes(obstore.get(store, "a").bytes()) == b"first"


def test_who_compares_with_an_old_version_is_refused(store: AzureStore) -> None:
    first = obstore.put(store, "a", b"first")
    obstore.put(store, "a", b"second", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "a", b"third", mode={"e_tag": first["e_tag"]})


def test_blocks_make_an_object(store: AzureStore) -> None:
    with obstore.open_writer(store, "a", buffer_size=1 << 20) as writer:
        for number in range(4):
            writer.write(bytes([number]) * (1 << 20))
    assert obstore.head(store, "a")["size"] == 4 << 20
    assert bytes(obstore.get_range(store, "a", start=(2 << 20) - 1, length=2)) == b"\x01\x02"


def test_containers_are_made_as_asked(azure: Azure) -> None:
    assert azure.make_container("other")
    assert azure.make_container("other")
    assert not azure.make_container("NoName")
    other = AzureStore("other", retry_config={"max_retries": 0, "retry_timeout": timedelta(1)})
    obstore.put(other, "a", b"x")
    assert [entry["path"] for page in obstore.list(other) for entry in page] == ["a"]
