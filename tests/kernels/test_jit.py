"""Compiled kernels are kept wherever there is a place for them, and work where there is none.

Each case is a process of its own that compiles one kernel. A folder "under" a file is one that
nobody can create, root included.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymerge.kernels.identity import kernel_hash

ROOT = Path(__file__).resolve().parents[2]
KNOWN_ANSWER = 0x6627E8D5
PROGRAM = """
import numba, numpy as np

from raymerge.kernels.philox import philox_words
words = np.zeros(4, np.uint32)
philox_words(np.uint64(0), np.uint64(0), 4, words)
print(words[0], sum(philox_words.stats.cache_hits.values()), numba.config.CACHE_DIR)
"""
WARNING = "no folder for compiled kernels is writable"


def compiled(**places: str) -> tuple[int, int, Path, str]:
    """A word of a kernel compiled elsewhere, its cache hits, its cache folder, and stderr."""
    forgotten = {"HOME", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in forgotten}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**kept, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    word, hits, folder = finished.stdout.rstrip("\n").split(" ", 2)
    return int(word), int(hits), Path(folder), finished.stderr


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """A folder that nobody can create: its parent is a file."""
    file = tmp_path / "a-file"
    file.touch()
    return str(file / "folder")


def test_a_given_folder_is_taken_and_serves_the_next_process(tmp_path: Path) -> None:
    word, hits, folder, _ = compiled(NUMBA_CACHE_DIR=str(tmp_path / "new"))
    assert (word, hits, folder.parent) == (KNOWN_ANSWER, 0, tmp_path / "new")

    word, hits, _, _ = compiled(NUMBA_CACHE_DIR=str(tmp_path / "new"))
    assert (word, hits) == (KNOWN_ANSWER, 1)


@pytest.mark.parametrize("home", ["", "~"], ids=["HOME unwritable", "no HOME and no such user"])
def test_without_a_writable_home_kernels_are_kept_in_the_temporary_folder(
    tmp_path: Path, nowhere: str, home: str
) -> None:
    word, _, folder, _ = compiled(
        HOME=home or nowhere, NUMBA_CACHE_DIR=nowhere, TMPDIR=str(tmp_path)
    )

    assert word == KNOWN_ANSWER
    assert folder.parent == tmp_path
    assert folder.name.startswith(f"raymerge-{os.getuid()}-")


def test_where_nothing_can_be_written_kernels_are_compiled_with_one_warning(
    tmp_path: Path, nowhere: str
) -> None:
    (tmp_path / f"raymerge-{os.getuid()}-kernels-{kernel_hash()}").touch()

    word, hits, _, warnings = compiled(HOME=nowhere, NUMBA_CACHE_DIR=nowhere, TMPDIR=str(tmp_path))

    assert (word, hits) == (KNOWN_ANSWER, 0)
    assert warnings.count(WARNING) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_another_user_s_folder_is_not_trusted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    *_, folder, _ = compiled(NUMBA_CACHE_DIR=str(tmp_path / "theirs"), HOME=str(home))
    os.chown(folder, 12345, 12345)

    *_, folder, _ = compiled(NUMBA_CACHE_DIR=str(tmp_path / "theirs"), HOME=str(home))

    assert folder.parent == home / ".cache" / "raymerge"
