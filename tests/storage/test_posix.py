from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError, StorageError
from raymerge.storage import posix
from raymerge.storage.posix import (
    PosixFolder,
    PosixReader,
    PosixShard,
    write_atomically,
)

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def pin_of(path: Path) -> Pin:
    return PosixFolder(path.parent).pin(path.name)


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_lists_its_files_and_follows_links(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "link.safetensors").symlink_to(file)
    (folder / "dangling").symlink_to(tmp_path / "gone")
    (folder / "config.json").write_text("{}")

    assert PosixFolder(folder).sizes() == {"link.safetensors": 1024, "config.json": 2}
    assert PosixFolder(folder).location == str(folder)


def test_a_file_is_a_folder_that_holds_it_alone(file: Path) -> None:
    (file.parent / "other.safetensors").write_bytes(b"")

    folder = PosixFolder(file)

    assert folder.sizes() == {file.name: 1024}
    assert folder.read(file.name, 3, 7) == CONTENT[3:7]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone does not exist"):
        PosixFolder(tmp_path / "gone")


def test_a_folder_that_vanishes_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = PosixFolder(tmp_path / "a")
    (tmp_path / "a").rmdir()

    with pytest.raises(SourceError, match="No such file"):
        folder.sizes()


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 0), (0, 1024), (1023, 1024), (1024, 1024), (7, 99)],
)
def test_a_ranged_read_gives_exactly_the_range(file: Path, start: int, stop: int) -> None:
    assert PosixFolder(file.parent).read(file.name, start, stop) == CONTENT[start:stop]


def test_a_read_past_the_end_names_source_file_and_range(file: Path) -> None:
    with pytest.raises(SourceError, match=r"bytes 1000-1030 .* ends at 1024") as caught:
        PosixFolder(file.parent).read(file.name, 1000, 1030)

    assert (caught.value.source, caught.value.file) == (str(file.parent), file.name)


def test_reading_or_pinning_what_is_not_there_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file") as read:
        PosixFolder(tmp_path).read("gone", 0, 1)
    with pytest.raises(SourceError, match="No such file"):
        PosixFolder(tmp_path).pin("gone")

    assert (read.value.file, read.value.retryable) == ("gone", False)


def test_a_reader_fills_reused_buffers_from_many_threads(file: Path) -> None:
    def read(offset: int) -> bool:
        buffer = memoryview(bytearray(64))
        reader.read_into(buffer, offset)
        return bytes(buffer) == CONTENT[offset : offset + 64]

    with PosixReader(file, pin_of(file), source="src") as reader, ThreadPoolExecutor(4) as pool:
        reader.will_need(0, 1024)
        assert all(pool.map(read, range(0, 960, 7)))


def test_a_reader_fills_buffers_that_are_not_of_bytes(file: Path) -> None:
    buffer = memoryview(bytearray(64)).cast("I")

    with PosixReader(file, pin_of(file), source="src") as reader:
        reader.read_into(buffer, 4)

    assert buffer.tobytes() == CONTENT[4:68]


def rewrite(path: Path) -> None:
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(CONTENT)
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(path)


def grow(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(CONTENT + b"x")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, replace, grow])
def test_a_file_that_is_not_the_planned_one_any_more_is_refused(
    file: Path,
    change: Callable[[Path], None],
) -> None:
    pin = pin_of(file)
    change(file)

    with pytest.raises(SourceError, match=r"src: .* changed since it was planned") as caught:
        PosixReader(file, pin, source="src")

    assert (caught.value.source, caught.value.file) == ("src", file.name)


def test_a_refused_file_is_not_left_open(file: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(SourceError):
        PosixReader(file, Pin(1, "other"), source="src")

    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_crash(file: Path) -> None:
    with PosixReader(file, pin_of(file), source="src") as reader:
        os.truncate(file, 100)

        reader.read_into(memoryview(bytearray(100)), 0)
        with pytest.raises(SourceError, match=r"cut short .* bytes 90-130 .* ends at 100"):
            reader.read_into(memoryview(bytearray(40)), 90)
        with pytest.raises(SourceError, match="changed since it was planned"):
            reader.check_unchanged()


def test_a_shard_is_filled_at_its_offsets_by_writers_that_know_nothing_of_each_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out" / "shard"

    def fill(offset: int) -> None:
        with PosixShard(path, 1024) as shard:
            shard.write_at(CONTENT[offset : offset + 128], offset)
            shard.sync()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, reversed(range(0, 1024, 128))))

    assert path.read_bytes() == CONTENT


def test_a_shard_has_its_full_length_from_the_start(tmp_path: Path) -> None:
    with PosixShard(tmp_path / "shard", 5000):
        assert (tmp_path / "shard").stat().st_size == 5000
        assert (tmp_path / "shard").stat().st_blocks * 512 >= 5000


def test_a_file_of_another_length_is_not_taken_for_the_shard(file: Path) -> None:
    with pytest.raises(StorageError, match=r"has 1024 bytes, planned are 1000"):
        PosixShard(file, 1000)

    assert file.read_bytes() == CONTENT


def test_an_empty_shard_is_a_file_too(tmp_path: Path) -> None:
    with PosixShard(tmp_path / "shard", 0) as shard:
        shard.write_at(b"", 0)

    assert (tmp_path / "shard").read_bytes() == b""


def test_a_full_disk_says_how_much_is_needed_and_how_much_is_free(small_disk: Path) -> None:
    with pytest.raises(StorageError, match=r"2000000 bytes are needed there and \d+ are free") as e:
        PosixShard(small_disk / "shard", 2_000_000)
    with pytest.raises(StorageError, match=r"2000000 bytes are needed there and \d+ are free"):
        write_atomically(small_disk / "index", bytes(2_000_000))

    assert not e.value.retryable
    assert not (small_disk / "index").exists()
    assert [path.name for path in small_disk.iterdir()] in ([], ["shard"])


def test_a_full_disk_met_while_writing_is_told_too(small_disk: Path) -> None:
    # A file of holes has its length already: it takes its blocks when they are written.
    (small_disk / "shard").touch()
    os.truncate(small_disk / "shard", 2_000_000)

    with PosixShard(small_disk / "shard", 2_000_000) as shard:
        shard.write_at(bytes(1000), 1_999_000)
        with pytest.raises(
            StorageError, match=r"No space left .* bytes are needed there and 0 are"
        ):
            shard.write_at(bytes(1_999_000), 0)


def test_a_limit_on_file_sizes_is_a_storage_error(tmp_path: Path) -> None:
    with file_size_limit(100), pytest.raises(StorageError, match="File too large"):
        PosixShard(tmp_path / "shard", 1000)

    shard = PosixShard(tmp_path / "shard", 1000)
    with shard, file_size_limit(100), pytest.raises(StorageError, match="500 bytes are needed"):
        shard.write_at(bytes(500), 500)


@pytest.mark.parametrize("place", ["/proc/raymerge/out", "/dev/null/out"])
def test_a_place_that_cannot_be_written_is_a_storage_error(place: str) -> None:
    with pytest.raises(StorageError, match="cannot be written") as caught:
        PosixShard(place, 10)
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(place, b"")

    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("code", "retryable"),
    [(errno.EIO, True), (errno.ESTALE, True), (errno.EROFS, False)],
)
def test_only_what_may_pass_is_worth_another_try(
    tmp_path: Path,
    code: int,
    *,
    retryable: bool,
) -> None:
    error = OSError(code, os.strerror(code))

    assert posix._unwritable(error, tmp_path, 1).retryable is retryable  # noqa: SLF001
    assert posix._unreadable(error, "s", tmp_path, None).retryable is retryable  # noqa: SLF001


def test_an_atomic_write_replaces_the_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "index.json"

    write_atomically(path, b"first and longer")
    write_atomically(path, b"second")

    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    write_atomically(path, b"old")

    with file_size_limit(100), pytest.raises(StorageError):
        write_atomically(path, bytes(1000))

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_nobody_else_fills_is_not_filled_with_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the C library would write them one by one."""
    monkeypatch.setattr(posix, "shares_files", lambda _: False)
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("zeros were written"))
    with PosixShard(tmp_path / "shard", 10_000) as shard:
        shard.write_at(b"end", 9_997)
    assert (tmp_path / "shard").read_bytes() == bytes(9_997) + b"end"
