from __future__ import annotations

import os
from pathlib import Path

import pytest

from raymerge.storage.mounts import filesystem_type, free_bytes, shares_files

MOUNTS = r"""
21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:5 / /mnt rw - nfs4 host:/x rw
23 22 0:6 / /mnt/with\040space rw,noatime shared:1 master:2 - xfs /dev/sdb rw
24 21 0:7 / /tmp rw - tmpfs tmpfs rw
25 21 0:8 / /tmp rw - fuse.gcsfuse bucket rw
26 21 0:9 / /srv/données rw - nfs4 host:/y rw
27 21 0:9 / /srv/a\134b\011c rw - nfs4 host:/z rw
""".strip()
# As a name that is no UTF-8 is read.
MOUNTS += "\n28 21 0:9 / /srv/\udce9 rw - nfs4 host:/w rw"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/x", "ext4"),
        ("/mnt", "nfs4"),
        ("/mnt/a", "nfs4"),
        ("/mntx", "ext4"),
        ("/mnt/with space/out", "xfs"),
        ("/tmp/out", "fuse.gcsfuse"),
        ("/srv/données/out", "nfs4"),
        ("/srv/a\\b\tc/out", "nfs4"),
        (os.fsdecode(b"/srv/\xe9/out"), "nfs4"),
    ],
)
def test_the_innermost_and_latest_mount_holds_a_path(path: str, expected: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == expected


def test_a_local_disk_shares_files_and_proc_does_not(small_disk: Path) -> None:
    assert shares_files(small_disk / "not" / "yet" / "there")
    assert not shares_files("/proc/self")


def test_free_bytes_are_those_of_the_place_a_path_would_lie_in(small_disk: Path) -> None:
    before = free_bytes(small_disk / "out" / "shard")
    (small_disk / "file").write_bytes(bytes(500_000))

    assert before <= 2**20
    assert before - free_bytes(small_disk / "out" / "shard") >= 500_000
