"""Sources in file systems that only pyarrow reaches: HDFS, by its native library."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.storage.store import RemoteFolder
from raymerge.storage.urls import Location


class ArrowFolder(RemoteFolder):
    """A folder of a file system of pyarrow's. Its files are pinned by length and modification time.

    Args:
        location: `hdfs://host:port/path` or `viewfs://...`.
        filesystem: The file system, where it is not the one that the location names.

    Raises:
        SourceError: The file system or its native library is not to be had, or there is no such
            folder.
    """

    def __init__(self, location: Location, filesystem: Any = None) -> None:
        from pyarrow import fs

        self._where = location
        self._given = filesystem
        self._filesystem, self._path = filesystem, f"/{location.path}"
        if filesystem is None:
            try:
                self._filesystem, self._path = fs.FileSystem.from_uri(str(location))
            except (OSError, ValueError) as error:
                # The library lists every place where it looked for Java.
                first = str(error).partition("\n")[0]
                raise self._failed(
                    f"cannot be reached: {first}. HDFS needs libhdfs and a JVM: set JAVA_HOME, "
                    "HADOOP_HOME and CLASSPATH (`hadoop classpath --glob`)"
                ) from error
        self._files: dict[str, Any] = {}
        self._lock = Lock()
        self._listing: Mapping[str, Pin] | None = None

    def __reduce__(self) -> tuple[type[ArrowFolder], tuple[Location, Any]]:
        return ArrowFolder, (self._where, self._given)

    @property
    def location(self) -> str:
        """The URL, as given."""
        return str(self._where)

    @property
    def retries(self) -> int:
        """None are seen: the library asks again by itself."""
        return 0

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file directly in the folder."""
        return {name: pin.size_bytes for name, pin in self._pins().items()}

    def pin(self, name: str) -> Pin:
        """Length and modification time of a file, as it was listed."""
        pin = self._pins().get(name)
        if pin is None:
            raise self._failed("is not there", name)
        return pin

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes `[start, stop)` of a file, as it was when it was listed."""
        return bytes(self.fetch(name, start, stop, self.pin(name)))

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        """Exactly the bytes `[start, stop)` of the file that `pin` names."""
        try:
            content = self._open(name).read_at(stop - start, start)
            found = _pin(self._filesystem.get_file_info(self._inside(name)))
        except OSError as error:
            raise self._failed(f"cannot be read: {error}", name, retryable=True) from error
        if found != pin:
            raise self._failed(
                f"changed since it was planned: {found.size_bytes} bytes ({found.tag}), expected "
                f"{pin.size_bytes} ({pin.tag}). Plan again",
                name,
            )
        if len(content) != stop - start:
            raise self._failed(f"gave {len(content)} of the bytes {start}-{stop}", name)
        return memoryview(content)

    def _pins(self) -> Mapping[str, Pin]:
        from pyarrow import fs

        if self._listing is None:
            try:
                found = self._filesystem.get_file_info(fs.FileSelector(self._path))
            except OSError as error:
                raise self._failed(f"cannot be listed: {error}") from error
            files = [one for one in found if one.type == fs.FileType.File]
            self._listing = {one.base_name: _pin(one) for one in files}
        return self._listing

    def _open(self, name: str) -> Any:
        with self._lock:
            if name not in self._files:
                self._files[name] = self._filesystem.open_input_file(self._inside(name))
            return self._files[name]

    def _inside(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def _failed(self, why: str, name: str | None = None, *, retryable: bool = False) -> SourceError:
        place = f"{self.location}/{name}" if name else self.location
        return SourceError(f"{place} {why}", source=self.location, file=name, retryable=retryable)


def _pin(found: Any) -> Pin:
    """Of pyarrow's FileInfo; a file that is gone has no length and equals no pin."""
    return Pin(found.size if found.size is not None else -1, str(found.mtime_ns))
