"""Where a merge goes: what a driver asks of OUT, whatever kind of place it is.

    claim     it is ours, or an earlier run's of the same plan, or refused
    prepare   a shard can be written
    keep      a unit's receipt, once its bytes are safe
    trusts    of a receipt that was found: are the bytes still what it says?
    publish   shards, the files beside them, the index last: this is the commit

Local folders are in `folder_destination`, object stores in `object_destination`, the Hub in
`hub_destination`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol, TypedDict

from raymerge.checkpoint.layout import Shard
from raymerge.errors import StorageError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime.read_back import ReadBack
from raymerge.runtime.receipt import Receipt
from raymerge.storage.store import Access
from raymerge.storage.urls import Location, Scheme, destination


class Figures(Protocol):
    """What is kept for a later run of the same plan, beside its receipts."""

    def read_figures(self, name: str) -> bytes | None:
        """What an earlier run kept under a name."""
        ...

    def keep_figures(self, name: str, content: bytes) -> None:
        """Keep something, in place of what an earlier run kept."""
        ...


class Destination(Figures, Protocol):
    """A claimed destination, until `close` or until another driver overwrites it."""

    location: str
    """Path or URL, as messages print it."""
    units_at: str
    """Path or URL of the place where workers write their units."""
    figures_at: str | None
    """Path or URL of the place where workers can read what `keep_figures` keeps; None where it is
    the driver's alone."""

    def check(self) -> None:
        """Raise ConflictError if another driver has taken the destination."""
        ...

    def check_space(
        self, needed_bytes: int, promised: MutableMapping[int, int] | None = None
    ) -> None:
        """Raise StorageError if it is known that a number of bytes does not fit.

        Args:
            needed_bytes: How many the output has.
            promised: Bytes that other destinations are going to take, by the number of their file
                system; what this one is going to take is added.
        """
        ...

    def receipts(self) -> dict[int, Receipt]:
        """Receipts of an earlier run, by unit; what cannot be read counts as not there."""
        ...

    def trusts(self, unit: Unit, receipt: Receipt) -> bool:
        """Whether the unit's bytes are still what the receipt says."""
        ...

    def keep(self, receipt: Receipt) -> None:
        """Write a receipt; the unit's data is safe already."""
        ...

    def prepare(self, shard: Shard) -> None:
        """Make sure that units of a shard can be written."""
        ...

    def shard_sha256(self, shard: Shard, last: Receipt) -> str:
        """The sha256 of a shard that is written whole.

        Args:
            shard: Which one.
            last: The receipt of the unit that was written last.

        Raises:
            CommitError: It does not hold what was planned.
        """
        ...

    def publish(
        self, plan: Plan, receipts: Mapping[int, Receipt], files: Mapping[str, bytes]
    ) -> None:
        """Make the checkpoint visible: shards, the files beside them, the index last.

        Raises:
            CommitError: A unit has no receipt, or a shard is not as long as planned. Nothing is
                published.
            ConflictError: Another driver has taken the destination.
        """
        ...

    def close(self) -> None:
        """Let go of it. What is not published stays for the next run of this plan."""
        ...


class _Terms(TypedDict):
    digest: str
    names: list[str]
    overwrite: bool


def claim(
    out: str,
    plan: Plan,
    *,
    names: list[str],
    overwrite: bool,
    access: Access,
    read_back: ReadBack | None = None,
) -> Destination:
    """Claim a destination for a plan.

    Args:
        out: Path or URL.
        plan: What is to be written.
        names: Files that are going to be published beside the index.
        overwrite: Take the destination whoever holds it, and remove what is there.
        access: How storage is reached.
        read_back: Hashes files of this and of other destinations.

    Raises:
        ConflictError: A live driver, another plan or a finished checkpoint holds the destination.
        StorageError: It cannot be reached or written.
    """
    where = destination(out)
    terms = _Terms(digest=plan.digest, names=names, overwrite=overwrite)
    if where.scheme is Scheme.FILE:
        from raymerge.runtime.folder_destination import FolderDestination

        return FolderDestination(Path(where.path), **terms, read_back=read_back)
    if where.scheme is Scheme.HUB:
        from raymerge.runtime.hub_destination import RepositoryDestination

        return RepositoryDestination(where, access, **terms)
    _check_written(where)
    from raymerge.runtime.object_destination import ObjectDestination

    return ObjectDestination(where, access, **terms)


def finished(out: str, digest: str, *, access: Access) -> dict[str, Any] | None:
    """raymerge.json of a checkpoint in `out` that this very plan has written, if there is one."""
    where = destination(out)
    if where.scheme is Scheme.FILE:
        from raymerge.runtime.commit import finished_record

        return finished_record(Path(where.path), digest)
    if where.scheme is Scheme.HUB:
        from raymerge.runtime.hub_destination import finished_on_hub

        return finished_on_hub(where, digest, access)
    _check_written(where)
    from raymerge.runtime.object_destination import finished_objects

    return finished_objects(where, digest, access)


def _check_written(where: Location) -> None:
    if not where.is_objects:
        raise StorageError(
            f"{where} is read from and not written to: what becomes visible there cannot be kept "
            "whole or absent. Give a path, an object store or a repository of the Hub"
        )
