"""File systems: the space that is left, and whether several processes may fill one file."""

from __future__ import annotations

import os
import re
from pathlib import Path

# File systems with one page cache for all writers of a file. NFS and FUSE clients cache pages of
# their own and lose a neighbour's bytes.
_SHARING = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "bcachefs")
)


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes an ordinary user may still write where `path` lies or would lie."""
    place = os.statvfs(_nearest_existing(path))
    return place.f_bavail * place.f_frsize


_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How a space, a tab, a newline or a backslash in a mount point is written; nothing else is."""


def shares_files(path: str | os.PathLike[str]) -> bool:
    """Whether several processes may fill one file by `pwrite` where `path` lies or would lie.

    True for local file systems, False for NFS, FUSE and any unknown one.
    """
    return mount_type(path) in _SHARING


def mount_type(path: str | os.PathLike[str]) -> str | None:
    """Type of the file system where `path` lies or would lie; None where that is not known."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return None
    return filesystem_type(_nearest_existing(path), mounts)


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """Type of the mount that holds `path`, an absolute path without links, by a mountinfo text."""
    best: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        mount, _, volume = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), mount.split(" ")[4]))
        depth = len(point.parts)
        # Of two mounts at one point the later hides the earlier.
        if path.is_relative_to(point) and (best is None or depth >= best[0]):
            best = depth, volume.split(" ")[0]
    return best[1] if best else None


def _nearest_existing(path: str | os.PathLike[str]) -> Path:
    place = Path(path).expanduser().resolve()
    while not place.exists():
        place = place.parent
    return place
