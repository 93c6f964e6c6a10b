"""Shards of several trials, hashed two at a time."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from raymerge.runtime.read_back import PIECE_BYTES, ReadBack

LENGTHS = (0, 1, 100, PIECE_BYTES, 3 * PIECE_BYTES + 17)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_files_that_come_together(tmp_path: Path, number: int) -> None:
    random = np.random.default_rng(0)
    wholes = {
        tmp_path / f"{length}-{i}": random.bytes(length)
        for length in LENGTHS
        for i in range(number)
    }
    for path, content in wholes.items():
        path.write_bytes(content)
    with closing(ReadBack(2)) as read_back, ThreadPoolExecutor(len(wholes)) as pool:
        lengths = [len(content) for content in wholes.values()]
        found = list(pool.map(read_back.sha256, wholes, lengths))

    assert found == [hashlib.sha256(content).hexdigest() for content in wholes.values()]


def test_what_one_file_suffers_from_is_not_the_other_s(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"0123456789")
    with closing(ReadBack(1)) as read_back, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read_back.sha256, tmp_path / name, 10) for name in ("one", "none")]
        assert waiting[0].result() == hashlib.sha256(b"0123456789").hexdigest()
        with pytest.raises(FileNotFoundError):
            waiting[1].result()


def test_who_waits_is_told_of_an_error(tmp_path: Path) -> None:
    with closing(ReadBack(2)) as read_back, pytest.raises(FileNotFoundError):
        read_back.sha256(tmp_path / "none", 10)
