"""Object stores as sources and destinations: s3://, gs://, az://, abfss://, memory://.

Both travel between processes as location and options; the other process makes clients of its own,
from its own environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError, StorageError
from raymerge.storage.advice import explain
from raymerge.storage.bucket import Bucket
from raymerge.storage.failures import Cause, FailedError
from raymerge.storage.leftovers import abort_leftovers
from raymerge.storage.patience import Patience
from raymerge.storage.store import Access, RemoteFolder, Store
from raymerge.storage.upload import ObjectUpload
from raymerge.storage.urls import Location, Scheme

_PATIENCE = Patience()


class ObjectFolder(RemoteFolder):
    """A prefix of an object store, or a single .safetensors object seen as a folder of its own.

    Args:
        location: Bucket and prefix.
        access: The storage options of the run.
        patience: How long a request is asked again.
    """

    def __init__(
        self, location: Location, access: Access, *, patience: Patience = _PATIENCE
    ) -> None:
        self._rebuilt = location, access, patience
        self._only: str | None = None
        if location.path.endswith(".safetensors"):
            parent, _, self._only = location.path.rpartition("/")
            location = Location(location.scheme, location.root, parent)
        self._bucket = Bucket(location, access.options, patience)
        self._listing: Mapping[str, Pin] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., ObjectFolder], tuple[Any, ...]]:
        return _folder, (*self._rebuilt, _home(self._rebuilt[0]))

    def __repr__(self) -> str:
        return f"ObjectFolder({self.location!r})"

    @property
    def location(self) -> str:
        """The URL, as given."""
        return str(self._rebuilt[0])

    @property
    def retries(self) -> int:
        """Requests that were made again so far."""
        return self._bucket.retries

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every object directly under the prefix, by one listing."""
        return {name: pin.size_bytes for name, pin in self._pins().items()}

    def pin(self, name: str) -> Pin:
        """Size and ETag of an object, as it was listed."""
        pin = self._pins().get(name)
        if pin is None:
            raise SourceError(f"{self._url(name)} is not there", source=self.location, file=name)
        return pin

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes `[start, stop)` of an object, as it was when it was listed."""
        return bytes(self.fetch(name, start, stop, self.pin(name)))

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        """Exactly the bytes `[start, stop)` of the object that `pin` names."""
        if stop > pin.size_bytes:
            raise SourceError(
                f"{self._url(name)}: bytes {start}-{stop} were asked for and the object ends at "
                f"{pin.size_bytes}. It is cut short; upload it again.",
                source=self.location,
                file=name,
            )
        if start == stop:
            return memoryview(b"")
        try:
            return self._bucket.range(name, start, stop, pin)
        except FailedError as error:
            raise self._unread(error, name, start, stop, pin) from None

    def _pins(self) -> Mapping[str, Pin]:
        with self._lock:
            if self._listing is None:
                self._listing = self._list()
            return self._listing

    def _list(self) -> Mapping[str, Pin]:
        try:
            if self._only is not None:
                return {self._only: self._bucket.head(self._only)[0]}
            listing = self._bucket.list(below=False)
        except FailedError as error:
            raise SourceError(
                f"{self.location} could not be listed: {_why(error, self._bucket.location)}",
                source=self.location,
                retryable=error.failure.retryable,
            ) from None
        if not listing:
            raise SourceError(
                f"{self.location} has no objects; give the prefix of a folder with a checkpoint, "
                "or a .safetensors object",
                source=self.location,
            )
        return listing

    def _unread(
        self, error: FailedError, name: str, start: int, stop: int, pin: Pin
    ) -> SourceError:
        if error.failure.cause in {Cause.CHANGED, Cause.MISSING}:
            message = (
                f"{self._url(name)} changed since it was planned: {self._found(name)}, expected "
                f"{pin.size_bytes} bytes (ETag {pin.tag}). Plan again."
            )
        else:
            why = _why(error, self._bucket.location)
            message = f"{self._url(name)}: bytes {start}-{stop} could not be read: {why}"
        return SourceError(
            message, source=self.location, file=name, retryable=error.failure.retryable
        )

    def _found(self, name: str) -> str:
        try:
            found, _ = self._bucket.head(name)
        except FailedError as error:
            return explain(error.failure, self._bucket.location)
        return f"{found.size_bytes} bytes (ETag {found.tag})"

    def _url(self, name: str) -> str:
        location = self._bucket.location
        return f"{location.scheme}://{location.root}/{self._bucket.key(name)}"


class ObjectStore(Store):
    """A prefix of an object store to write to.

    Args:
        location: Bucket and prefix.
        access: The storage options of the run.
        patience: How long a request is asked again.
    """

    def __init__(
        self, location: Location, access: Access, *, patience: Patience = _PATIENCE
    ) -> None:
        self._rebuilt = location, access, patience
        self._bucket = Bucket(location, access.options, patience)

    def __reduce__(self) -> tuple[Callable[..., ObjectStore], tuple[Any, ...]]:
        return _store, (*self._rebuilt, _home(self._rebuilt[0]))

    def __repr__(self) -> str:
        return f"ObjectStore({self.location!r})"

    @property
    def location(self) -> str:
        """The URL, as given."""
        return str(self._rebuilt[0])

    @property
    def retries(self) -> int:
        """Requests that were made again so far, but for those of uploads."""
        return self._bucket.retries

    def pins(self) -> Mapping[str, Pin]:
        """Everything under the prefix, by name: size and ETag."""
        try:
            return self._bucket.list(below=True)
        except FailedError as error:
            raise self._failed(error, "", "listed") from None

    def head(self, name: str) -> Pin | None:
        """Size and ETag of an object, or None where there is none."""
        try:
            return self._bucket.head(name)[0]
        except FailedError as error:
            self._expect(error, name, "looked up", Cause.MISSING)
            return None

    def read(self, name: str) -> tuple[bytes, Pin] | None:
        """A small object and what it is known by, or None where there is none."""
        try:
            return self._bucket.get(name)
        except FailedError as error:
            self._expect(error, name, "read", Cause.MISSING)
            return None

    def put(self, name: str, data: bytes) -> Pin:
        """Write an object, whole or not at all, in place of any other."""
        try:
            return self._bucket.put(name, data)
        except FailedError as error:
            raise self._failed(error, name, "written") from None

    def create(self, name: str, data: bytes) -> Pin | None:
        """Write an object unless there is one of that name; None if there is."""
        try:
            return self._bucket.put(name, data, "create")
        except FailedError as error:
            self._expect(error, name, "created", Cause.EXISTS, Cause.CHANGED)
            return self._written_before(error, name, data)

    def replace(self, name: str, data: bytes, pin: Pin) -> Pin | None:
        """Write an object in place of the one that `pin` names; None if that is not there now."""
        try:
            return self._bucket.put(name, data, self._bucket.condition(name, pin))
        except FailedError as error:
            self._expect(error, name, "replaced", Cause.CHANGED, Cause.MISSING)
            return self._written_before(error, name, data)

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens where there is none."""
        try:
            self._bucket.delete(name)
        except FailedError as error:
            self._expect(error, name, "removed", Cause.MISSING)

    def upload(self, name: str, *, part_bytes: int, parts_in_flight: int) -> ObjectUpload:
        """Begin to write a large object in parts."""
        return ObjectUpload(
            self._bucket, name, part_bytes=part_bytes, parts_in_flight=parts_in_flight
        )

    def abort_leftovers(self, names: Collection[str]) -> tuple[str, ...]:
        """Abort what killed runs left of uploads of these very objects, before any of this run.

        Returns:
            What the user has to know or to do, a sentence each.
        """
        found = abort_leftovers(self._bucket.location, self._rebuilt[1], names)
        return (found.advice,) if found.advice else ()

    def _written_before(self, error: FailedError, name: str, data: bytes) -> Pin | None:
        """The object, if an earlier try wrote it and only the answer was lost on its way."""
        if error.tries == 1:
            return None
        found = self.read(name)
        return found[1] if found and found[0] == data else None

    def _expect(self, error: FailedError, name: str, done: str, *causes: Cause) -> None:
        """Raise unless the failure is one of these."""
        if error.failure.cause not in causes:
            raise self._failed(error, name, done) from None

    def _failed(self, error: FailedError, name: str, done: str) -> StorageError:
        location = self._bucket.location
        url = f"{location.scheme}://{location.root}/{self._bucket.key(name)}"
        return StorageError(
            f"{url.rstrip('/')} could not be {done}: {_why(error, location)}",
            source=self.location,
            file=name or None,
            retryable=error.failure.retryable,
        )


def _why(error: FailedError, location: Location) -> str:
    why = explain(error.failure, location)
    if error.tries == 1:
        return why
    return f"{why} Tried {error.tries} times in {error.seconds:.0f} s."


def _home(location: Location) -> int | None:
    """The process that a location belongs to, if it belongs to one."""
    return os.getpid() if location.scheme is Scheme.MEMORY else None


def _folder(
    location: Location, access: Access, patience: Patience, home: int | None
) -> ObjectFolder:
    _check_home(location, home)
    return ObjectFolder(location, access, patience=patience)


def _store(location: Location, access: Access, patience: Patience, home: int | None) -> ObjectStore:
    _check_home(location, home)
    return ObjectStore(location, access, patience=patience)


def _check_home(location: Location, home: int | None) -> None:
    if home not in {None, os.getpid()}:
        raise StorageError(
            f"{location} lies in the memory of one process and was taken to another; "
            "give `--engine local`",
            source=str(location),
        )
