"""Bring a whole checkpoint from one folder of this machine to another.

claim the target -> a link of each file, or where there are none across file systems a copy
                 -> published as after a merge, the index last

The found one stays as it is until then, so that a kill leaves one that is whole.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

from raymerge.checkpoint.catalog import WEIGHTS
from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME
from raymerge.errors import StorageError
from raymerge.runtime.commit import Claim
from raymerge.storage.mounts import free_bytes
from raymerge.units import format_bytes

PIECE_BYTES = 8 * 2**20


def adopt(found: Path, out: Path, *, digest: str, overwrite: bool) -> None:
    """Publish in `out` the files of a checkpoint that a merge has published in `found`.

    Args:
        found: Folder of the checkpoint; it is left as it is.
        out: Folder to publish in.
        digest: Of the plan that it was merged by.
        overwrite: Replace whatever `out` holds.

    Raises:
        ConflictError: A live driver, another plan or a finished checkpoint holds `out`.
        StorageError: It cannot be written.
    """
    names = [path.name for path in found.iterdir() if path.is_file()]
    names.sort(key=lambda name: (_ORDER.get(name, not name.endswith(WEIGHTS)), name))
    claim = Claim(out, digest=digest, overwrite=overwrite, names=names)
    with closing(claim):
        for name in names:
            _bring(found / name, claim.folder / name)
        claim.publish_files(names)


_ORDER = {RECORD_NAME: 2, INDEX_NAME: 3}
"""Behind shards, which are 0, and all other files."""


def _bring(path: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        _copy(path, target)


def _copy(path: Path, target: Path) -> None:
    needed, free = path.stat().st_size, free_bytes(target.parent)
    if needed > free:
        raise StorageError(
            f"{target.parent} has {format_bytes(free)} free and {path.name} needs "
            f"{format_bytes(needed)}; free some or give another folder"
        )
    try:
        with path.open("rb") as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, PIECE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from error
