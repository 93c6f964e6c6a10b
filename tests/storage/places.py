"""The object stores that the contract is held against, each with an empty place of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from raymerge.storage.objects import ObjectFolder, ObjectStore
from raymerge.storage.store import Access
from raymerge.storage.urls import destination, join
from tests.servers.gcs import Gcs
from tests.servers.seaweed import S3

PART_BYTES = 5 * 2**20
KINDS = ("memory", "s3", "azure", "gcs")

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class StorePlace:
    """An empty place in a real store."""

    kind: str
    url: str
    num_unfinished: Callable[[], int]
    """Uploads with parts that nobody finished or aborted, as far as the store shows them."""

    @property
    def store(self) -> ObjectStore:
        """A new destination."""
        return ObjectStore(destination(self.url), Access())

    def folder(self, name: str = "") -> ObjectFolder:
        """A new source, here or below."""
        place = destination(self.url)
        return ObjectFolder(join(place, name) if name else place, Access())


def open_place(kind: str, request: pytest.FixtureRequest) -> StorePlace:
    """An empty place in a store of this kind, or a skip that says why there is none."""
    if kind == "memory":
        return StorePlace(kind, f"memory://test-{next(_numbers)}/out", lambda: 0)
    if kind == "s3":
        s3: S3 = request.getfixturevalue("s3")
        return StorePlace(kind, s3.url("out"), lambda: s3.uploads().body.count(b"<UploadId>"))
    if kind == "azure":
        # Azure keeps the blocks of an aborted upload to itself, and discards them after a week.
        return StorePlace(kind, request.getfixturevalue("azure").url("out"), lambda: 0)
    gcs: Gcs = request.getfixturevalue("gcs")
    return StorePlace(kind, gcs.url("out"), lambda: len(gcs.inside.uploads))
