"""Where bytes lie. Local files are in `posix`, what their file systems allow in `mounts`."""

from __future__ import annotations

import re
from pathlib import Path

from raymerge.errors import SourceError
from raymerge.storage.posix import PosixFolder

_HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)")


def open_folder(location: str, *, label: str) -> PosixFolder:
    """The folder of a source.

    Raises:
        SourceError: It is not there, or it is a place that raymerge cannot read from.
    """
    if Path(location).exists():
        return PosixFolder(location)
    if hub := _HUB_ID.fullmatch(location):
        raise SourceError(
            f"{label}: there is no folder {location}, and sources are not fetched from the Hub; "
            f"`hf download {hub[1]} --local-dir {hub[1]}` fetches it, if it is a repository there",
            source=label,
        )
    if "://" in location:
        raise SourceError(
            f"{label}: {location} cannot be read: sources are folders of this machine's file "
            "systems; copy it to one",
            source=label,
        )
    return PosixFolder(location)
