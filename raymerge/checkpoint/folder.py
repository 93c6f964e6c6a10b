"""What a checkpoint's storage offers to the code that reads headers. Storage implements it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pin:
    """The identity of a file at one moment. Another pin later means the file changed."""

    size_bytes: int
    tag: str
    """An ETag, a commit, or modification time and inode: whatever the storage can vouch for."""


class Folder(Protocol):
    """One flat folder of files, local or remote."""

    @property
    def location(self) -> str:
        """Path or URL, as an error message should print it."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file directly in the folder, by name."""
        ...

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Exactly the bytes `[start, stop)` of a file.

        Raises:
            SourceError: Fewer came; source, file and byte range are in the message.
        """
        ...

    def pin(self, name: str) -> Pin:
        """Identity of a file now.

        Raises:
            SourceError: There is no such file.
        """
        ...
