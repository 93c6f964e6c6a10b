"""How a unit's bytes get to their shard: into a file at their offset, or up to a store in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

from raymerge.checkpoint.layout import header_of
from raymerge.plan.graph import Unit
from raymerge.plan.memory import PARTS_IN_FLIGHT, part_bytes
from raymerge.storage.posix import PosixShard
from raymerge.storage.store import Access, Upload
from raymerge.storage.urls import Location, Scheme, destination


class UnitWriter(Protocol):
    """A unit on its way to its shard. What is not finished leaves nothing that would be trusted."""

    head: bytes
    """What stands before the unit's first tensor and counts as its own: a header, or nothing."""

    def write(self, data: memoryview) -> None:
        """The next bytes; the memory may be used again at once."""
        ...

    def finish(self, shard_sha256: str | None) -> Mapping[str, str]:
        """Return once all is safe, with what the place knows the bytes by.

        Args:
            shard_sha256: Of all that was written, where the unit is a whole shard.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class FileWriter:
    """A unit's range of a shard that lies in a local file."""

    def __init__(self, folder: str, unit: Unit) -> None:
        self._shard = PosixShard(Path(folder, unit.shard), unit.shard_bytes)
        self._position = unit.nodes[0].slot.start
        # The first unit of a shard answers for its header, which is there already.
        self.head = self._shard.read(unit.start, self._position)

    def write(self, data: memoryview) -> None:
        """See `UnitWriter.write`."""
        self._shard.write_at(data, self._position)
        self._position += data.nbytes

    def finish(self, shard_sha256: str | None) -> Mapping[str, str]:  # noqa: ARG002
        """See `UnitWriter.finish`."""
        self._shard.sync()
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._shard.close()


class ObjectWriter:
    """A whole shard on its way to an object store, in one upload."""

    def __init__(self, location: Location, unit: Unit, access: Access) -> None:
        from raymerge.storage.objects import ObjectStore

        self._upload: Upload = ObjectStore(location, access).upload(
            unit.shard, part_bytes=part_bytes(unit.shard_bytes), parts_in_flight=PARTS_IN_FLIGHT
        )
        self.head = header_of(node.slot for node in unit.nodes)
        self._upload.write(self.head)

    def write(self, data: memoryview) -> None:
        """See `UnitWriter.write`."""
        # A copy: the client keeps what it is given until the part is acknowledged.
        self._upload.write(bytes(data))

    def finish(self, shard_sha256: str | None) -> Mapping[str, str]:  # noqa: ARG002
        """See `UnitWriter.finish`: the object's ETag."""
        return {"etag": self._upload.finish().tag}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._upload.abort()


class HubWriter:
    """A whole shard for the Hub: filled on this node's disk, uploaded, and removed from there."""

    def __init__(self, location: Location, unit: Unit) -> None:
        from raymerge.storage.hub_cache import state_folder
        from raymerge.storage.hub_upload import HubDestination

        self._branch = HubDestination(str(location))
        self._name = unit.shard
        self._path = state_folder(self._branch.location) / "scratch" / unit.shard
        # A process that was killed has left its own, maybe of another merge.
        self._path.unlink(missing_ok=True)
        self._shard = PosixShard(self._path, unit.shard_bytes)
        self.head = header_of(node.slot for node in unit.nodes)
        self._shard.write_at(self.head, 0)
        self._position = len(self.head)

    def write(self, data: memoryview) -> None:
        """See `UnitWriter.write`."""
        self._shard.write_at(data, self._position)
        self._position += data.nbytes

    def finish(self, shard_sha256: str | None) -> Mapping[str, str]:
        """See `UnitWriter.finish`: the hash that the Hub keeps the content by."""
        return {"sha256": self._branch.add(self._name, self._path, sha256=shard_sha256).sha256}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._shard.close()
        self._path.unlink(missing_ok=True)


def unit_writer(units_at: str, unit: Unit, access: Access) -> UnitWriter:
    """What writes a unit at a place that a `Destination` has named."""
    where = destination(units_at)
    if where.scheme is Scheme.HUB:
        return HubWriter(where, unit)
    return ObjectWriter(where, unit, access) if where.is_objects else FileWriter(where.path, unit)
