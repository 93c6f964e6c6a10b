"""What remote places offer: folders to read by range, and stores to write to.

    Folder         sizes, read, pin                      any source; headers are read through it
    RemoteFolder   fetch of a pinned range, any thread   a source that is not a local file
    Store          put, create, replace, upload          a destination that is not a local folder

Names are relative to the place, with `/` between parts. Whatever is given back belongs to the
caller, and whatever is given may not be changed afterwards: clients keep a reference to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from raymerge.checkpoint.folder import Folder, Pin
from raymerge.storage.options import NAMES, check_options


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How storage is reached, the same in every process of a run. Holds no secret."""

    options: Mapping[str, str] = field(default_factory=dict)
    """Of `--storage-option`: endpoints, regions and the like. Secrets come from the environment."""
    cache: bool = True
    """Whether files of the Hub go through its cache on this node, or are read by range."""

    def __post_init__(self) -> None:
        # Here, before they reach a plan, a ledger or another process. Whether the schemes in use
        # have them is asked where those are known.
        check_options(self.options, NAMES.keys())


class RemoteFolder(Folder, Protocol):
    """A source whose files are read over a network. Safe to share between threads."""

    @property
    def retries(self) -> int:
        """Requests that were made again so far."""
        ...

    @property
    def copied(self) -> Callable[[str, Pin], Path] | None:
        """Gives the copy of a file on this node, made now unless another process has made it.

        None where files are read by range. A copy may fail with a SourceError, and with a
        StorageError where there is no room for it.
        """
        return None

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        """Exactly the bytes `[start, stop)` of the file that `pin` names, in memory of their own.

        Raises:
            SourceError: The file has changed or is gone, fewer bytes came, or the place could not
                be reached within the patience there is; `retryable` says whether it may later.
        """
        ...


class Upload(Protocol):
    """One object on its way, in order. It is seen whole once finished, and otherwise never."""

    def write(self, data: bytes) -> None:
        """Send the next bytes. Blocks while as many parts as agreed are on their way."""
        ...

    def finish(self) -> Pin:
        """Return once the object is stored, with what it is known by."""
        ...

    def abort(self) -> None:
        """Leave nothing behind. After `finish` this does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None:
        """Abort what is not finished."""
        ...


class Store(Protocol):
    """A destination of objects. Safe to share between threads; picklable."""

    @property
    def location(self) -> str:
        """Its URL, as messages print it."""
        ...

    def pins(self) -> Mapping[str, Pin]:
        """Everything below the place, by name: size and ETag."""
        ...

    def head(self, name: str) -> Pin | None:
        """Size and ETag of an object, or None where there is none."""
        ...

    def read(self, name: str) -> tuple[bytes, Pin] | None:
        """A small object and what it is known by, or None where there is none."""
        ...

    def put(self, name: str, data: bytes) -> Pin:
        """Write an object, whole or not at all, in place of any other."""
        ...

    def create(self, name: str, data: bytes) -> Pin | None:
        """Write an object unless there is one of that name; None if there is."""
        ...

    def replace(self, name: str, data: bytes, pin: Pin) -> Pin | None:
        """Write an object in place of the one that `pin` names; None if that is not there now."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        ...

    def upload(self, name: str, *, part_bytes: int, parts_in_flight: int) -> Upload:
        """Begin to write a large object in parts.

        It holds `part_bytes * (parts_in_flight + 1)` bytes at most.
        """
        ...
