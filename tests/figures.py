"""What a survey keeps, in a folder that no driver has claimed."""

from __future__ import annotations

from pathlib import Path

from raymerge.storage.posix import write_atomically


class FolderFigures:
    """See `Figures`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def read_figures(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def keep_figures(self, name: str, content: bytes) -> None:
        write_atomically(self._folder / name, content)
