"""What pyarrow reaches, by a file system of pyarrow's that is always there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from raymerge.errors import SourceError
from raymerge.storage.arrow import ArrowFolder
from raymerge.storage.urls import Location, Scheme

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def folder(tmp_path: Path) -> ArrowFolder:
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    (tmp_path / "deeper").mkdir()
    where = Location(Scheme.HDFS, "host:8020", str(tmp_path).strip("/"))
    return ArrowFolder(where, fs.LocalFileSystem())


def test_a_folder_is_listed_and_read_by_range(folder: ArrowFolder) -> None:
    assert folder.sizes() == {"model.safetensors": len(CONTENT)}
    assert folder.location.startswith("hdfs://host:8020/")
    pin = folder.pin("model.safetensors")
    assert bytes(folder.fetch("model.safetensors", 3, 700, pin)) == CONTENT[3:700]
    assert folder.read("model.safetensors", 0, 8) == CONTENT[:8]


def test_what_is_not_there_or_has_changed_is_named(folder: ArrowFolder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"config\.json is not there"):
        folder.pin("config.json")
    pin = folder.pin("model.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT + b"x")
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceError, match="changed since it was planned"):
        folder.fetch("model.safetensors", 0, 8, pin)


def test_a_range_beyond_the_end_is_refused(folder: ArrowFolder) -> None:
    pin = folder.pin("model.safetensors")
    with pytest.raises(SourceError, match="of the bytes"):
        folder.fetch("model.safetensors", 0, len(CONTENT) + 1, pin)
