"""What happens to a run from outside: signals, a second driver, a full disk, a source that changes.

Every run here is a process of its own, stopped (SIGSTOP) once its first unit has landed, so that
what is done to it meets it in the middle.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

import raymerge
from raymerge.runtime.ledger import TENSORS_NAME, UNITS_NAME
from tests.conftest import Done, Place, finish, shard_hashes, spawn

INDEX = "model.safetensors.index.json"
TENSORS = 2600
"""Twenty-one units of up to 128 tensors: a second of work, less than 2 MB."""
OPTIONS = (
    "--engine",
    "local",
    "--device",
    "cpu",
    "--workers",
    2,
    "--shard-size",
    "200kB",
    "--json",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Models of many tensors, and the hashes of their merge in `reference`."""
    place = Place(tmp_path_factory.mktemp("many"))
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        place.model(
            name,
            {
                f"model.layers.{i}.weight": torch.randn(18, 16, generator=generator).bfloat16()
                for i in range(TENSORS)
            },
        )
    place.any_recipe("ties")
    place.any_recipe("linear")
    for method in ("ties", "linear"):
        done = place.run("merge", place / f"{method}.yaml", place / f"ref-{method}", *OPTIONS)
        assert done.rc == 0
    return place


@pytest.fixture
def own_sources(sources: Place, tmp_path: Path) -> Place:
    """Copies of the models, to break."""
    place = Place(tmp_path / "own")
    place.path.mkdir()
    for name in ("base", "a", "b"):
        subprocess.run(["cp", "-r", sources / name, place / name], check=True)
    place.any_recipe("ties")
    return place


@contextmanager
def halfway(place: Place, out: Path, method: str = "ties") -> Iterator[subprocess.Popen[str]]:
    """A merge that is stopped after its first unit, and goes on when the block ends."""
    process = spawn("merge", place / f"{method}.yaml", out, *OPTIONS)
    try:
        while not list(out.glob(".raymerge/*/unit-*.json")):
            assert process.poll() is None, finish(process)
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        # It runs on for a moment: the signal is taken when its threads next enter the kernel.
        os.waitpid(process.pid, os.WUNTRACED)
        assert not (out / INDEX).exists(), "the merge was over before it was stopped"
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)


def merged(place: Place, out: Path, *more: object, method: str = "ties") -> Done:
    return place.run("merge", place / f"{method}.yaml", out, *OPTIONS, *more)


def assert_finished_by_a_rerun(place: Place, out: Path, reference: Path) -> None:
    done = merged(place, out)
    assert done.rc == 0, done.err
    assert done.json["resumed_units"] > 0
    assert shard_hashes(out) == shard_hashes(reference)
    assert not (out / ".raymerge").exists()
    assert raymerge.verify(out).ok


@pytest.mark.parametrize(
    ("number", "rc", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, -9, ""),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_signal_leaves_no_index_and_a_rerun_finishes(
    sources: Place, tmp_path: Path, number: signal.Signals, rc: int, word: str
) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        process.send_signal(number)
    done = finish(process)

    assert (done.rc, done.out) == (rc, "")
    assert not (out / INDEX).exists()
    if word:
        assert f"{word}; run the same command again to finish {out}" in done.err
        assert "Traceback" not in done.err
    assert_finished_by_a_rerun(sources, out, sources / "ref-ties")


def test_the_ledger_marks_what_a_killed_run_had_written(sources: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        process.kill()
    finish(process)
    done = merged(sources, out)
    units = parquet.read_table(out / UNITS_NAME).to_pylist()
    tensors = parquet.read_table(out / TENSORS_NAME).to_pylist()
    resumed = {unit["unit"] for unit in units if unit["resumed"]}
    workers = {unit["unit"]: int(unit["worker"].rpartition(":")[2]) for unit in units}

    assert 0 < len(resumed) == done.json["resumed_units"] < len(units)
    assert {workers[unit] for unit in resumed} == {process.pid}
    assert {workers[unit] for unit in workers.keys() - resumed} == {os.getpid()}
    last = max(unit["began"] for unit in units if unit["resumed"])
    assert last < min(unit["began"] for unit in units if not unit["resumed"])
    for tensor in tensors:
        stored = (out / tensor["shard"]).read_bytes()[tensor["start"] : tensor["stop"]]
        assert tensor["sha256"] == hashlib.sha256(stored).hexdigest()


def test_a_second_driver_is_refused_and_the_first_goes_on(sources: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        for method in ("ties", "linear"):
            done = merged(sources, out, method=method)
            assert (done.rc, done.error["type"]) == (2, "ConflictError")
            assert f"process {process.pid}" in done.error["message"]
    done = finish(process)

    assert done.rc == 0, done.err
    assert shard_hashes(out) == shard_hashes(sources / "ref-ties")


def test_of_two_that_start_together_one_wins(sources: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [spawn("merge", sources / "ties.yaml", out, *OPTIONS) for _ in range(2)]
    done = [finish(process) for process in both]
    winners = [each for each in done if each.rc == 0 and each.json["engine"] == "local"]
    others = [each for each in done if each not in winners]

    assert len(winners) == 1, done
    # The other was refused or, if it started late, found the work done.
    assert others[0].rc == 2 or others[0].json["engine"] == "none", done
    assert shard_hashes(out) == shard_hashes(sources / "ref-ties")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_overwriting_a_live_run_stops_it_before_it_commits(
    sources: Place, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        winner = merged(sources, out, "--overwrite", method=method)
        assert winner.rc == 0, winner.err
    loser = finish(process)

    assert (loser.rc, loser.error["type"]) == (2, "ConflictError"), loser
    assert "taken over" in loser.error["message"]
    assert shard_hashes(out) == shard_hashes(sources / f"ref-{method}")
    assert not (out / ".raymerge").exists()
    assert raymerge.verify(out).ok


def test_a_run_that_is_overwritten_while_both_run_stops_and_the_other_commits(
    sources: Place, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as loser:
        winner = spawn("merge", sources / "linear.yaml", out, *OPTIONS, "--overwrite")
        while json.loads((out / ".raymerge" / "claim.json").read_text())["pid"] != winner.pid:
            assert winner.poll() is None, finish(winner)
            time.sleep(0.001)
    first, second = finish(loser), finish(winner)

    assert (first.rc, second.rc) == (2, 0), (first, second)
    assert shard_hashes(out) == shard_hashes(sources / "ref-linear")


def test_another_recipe_does_not_go_on_with_a_dead_run(sources: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        process.kill()
    finish(process)
    done = merged(sources, out, method="linear")

    assert (done.rc, done.error["type"]) == (2, "ConflictError")
    assert "unfinished merge of another recipe" in done.error["message"]
    assert_finished_by_a_rerun(sources, out, sources / "ref-ties")


def test_bytes_that_rotted_since_are_written_again(sources: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with halfway(sources, out) as process:
        process.kill()
    finish(process)
    for path in out.glob(".raymerge/*/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    for receipt in list(out.glob(".raymerge/*/unit-*.json"))[:1]:
        receipt.write_text("{")

    assert merged(sources, out).rc == 0
    assert shard_hashes(out) == shard_hashes(sources / "ref-ties")


# --- sources that change -------------------------------------------------------------------------


def test_a_source_cut_short_while_it_is_read_is_an_error_and_no_bus_error(
    own_sources: Place, sources: Place, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", own_sources / "b" / "model.safetensors"
    content, stat = source.read_bytes(), source.stat()
    with halfway(own_sources, out) as process:
        os.truncate(source, len(content) // 2)
    done = finish(process)

    assert (done.rc, done.error["type"], done.error["source"]) == (3, "SourceError", "b")
    message = done.error["message"]
    assert "cut short" in message or "changed since it was planned" in message
    assert done.error["file"] == "model.safetensors"
    assert not (out / INDEX).exists()
    # Put back as it was - the same file, the same time - it is the planned source again.
    source.write_bytes(content)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_finished_by_a_rerun(own_sources, out, sources / "ref-ties")


def test_a_source_rewritten_while_it_is_read_is_an_error(
    own_sources: Place, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", own_sources / "a" / "model.safetensors"
    with halfway(own_sources, out) as process, source.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    done = finish(process)

    assert (done.rc, done.error["type"], done.error["source"]) == (3, "SourceError", "a")
    assert "changed since it was planned" in done.error["message"]
    assert not (out / INDEX).exists()


def test_a_run_does_not_go_on_over_a_changed_source(own_sources: Place, tmp_path: Path) -> None:
    out, source = tmp_path / "out", own_sources / "a" / "model.safetensors"
    with halfway(own_sources, out) as process:
        process.kill()
    finish(process)
    os.utime(source)
    done = merged(own_sources, out)

    assert (done.rc, done.error["type"]) == (2, "ConflictError")
    assert "sources that have changed" in done.error["message"]


# --- destinations that fail ----------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A real file system of its own."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_filled(
    sources: Place, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "size=256k") as disk:
        done = merged(sources, disk / "out")
        needed = sum(p.stat().st_size for p in (sources / "ref-ties").glob("*.safetensors"))

        assert (done.rc, done.error["type"]) == (3, "StorageError")
        assert f"({needed} bytes) are needed" in done.error["message"]
        assert "bytes) free" in done.error["message"]
        assert not list(disk.rglob("*.safetensors"))


def test_a_disk_that_fills_up_is_an_error_and_the_run_can_be_finished(
    sources: Place, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "size=3M") as disk:
        out, filler = disk / "out", disk / "filler"
        with halfway(sources, out) as process:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filler.write_bytes(b"\0" * (free - 16_384))
        done = finish(process)

        assert (done.rc, done.error["type"]) == (3, "StorageError"), done
        assert "No space left" in done.error["message"]
        assert "bytes are needed there and" in done.error["message"]
        assert not (out / INDEX).exists()
        filler.unlink()
        assert_finished_by_a_rerun(sources, out, sources / "ref-ties")


def test_a_destination_that_cannot_be_written_is_an_error(sources: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = merged(sources, tmp_path / "file" / "out")
    assert (done.rc, done.error["type"]) == (3, "StorageError")

    with small_disk(tmp_path / "disk", "size=3M", "ro") as disk:
        done = merged(sources, disk / "out")
        assert (done.rc, done.error["type"]) == (3, "StorageError")
        assert "Read-only file system" in done.error["message"]
