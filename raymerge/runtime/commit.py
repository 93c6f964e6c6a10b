"""Claim a destination, keep receipts, publish. A checkpoint is whole or absent.

    OUT/.raymerge/claim.json          whose OUT is: plan digest, driver, process, time
    OUT/.raymerge/<digest>/           shards while they are filled, receipts, survey figures
    OUT/model-...safetensors          renamed here once every receipt is in
    OUT/model.safetensors.index.json  written last: this is the commit

A driver holds a lock on its claim file for as long as it lives, so a claim whose lock is free was
left by a driver that died: the same digest takes it over and goes on. `--overwrite` puts a new
claim in place of the old one; the driver that held it finds that out before it publishes and stops.
A lock on OUT itself orders the two: a claim changes hands either before a commit begins or after it
ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME, SINGLE_NAME, build_index
from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, ConflictError, RaymergeError, StorageError
from raymerge.plan.build import Plan
from raymerge.runtime.receipt import Receipt, check_complete, read_receipt
from raymerge.runtime.record import record_of
from raymerge.runtime.side_files import changes_loading
from raymerge.storage.posix import is_locked, move, write_atomically

STATE_FOLDER = ".raymerge"
CLAIM_NAME = "claim.json"
_UNCLEAR_NAME = "overwrites"
"""There until what an `--overwrite` replaces is gone. Whoever takes the claim over goes on."""


class Claim:
    """A destination that is ours, until `close` or until another driver overwrites it.

    Args:
        out: The destination folder.
        digest: Digest of the plan that is to be written.
        names: Files that are going to be published.
        overwrite: Take the destination whoever holds it, and remove what is there.
        shown: What messages call it; None is by its path.

    Raises:
        ConflictError: A live driver, another plan or a finished checkpoint holds the destination.
    """

    def __init__(
        self,
        out: Path,
        *,
        digest: str,
        overwrite: bool,
        names: Collection[str] = (),
        shown: str | None = None,
    ) -> None:
        self.out = out
        self._shown = shown or str(out)
        self.digest = digest
        self._driver = secrets.token_hex(8)
        self._path = out / STATE_FOLDER / CLAIM_NAME
        self.folder = out / STATE_FOLDER / digest
        """Where shards are filled and receipts lie."""
        unclear = self.folder / _UNCLEAR_NAME
        with _exclusive(self.out):
            found = _read_claim(self._path)
            if not overwrite:
                self._refuse_others(found, names)
            self.is_new = found is None
            self.folder.mkdir(exist_ok=True)
            if overwrite:
                unclear.touch()
            # Before anything is removed: the driver that had it has to know why its files are gone.
            write_atomically(self._path, self._content())
            # Held until this process ends, however it ends.
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                if unclear.exists():
                    self._clear()
                    unclear.unlink()
            except OSError:
                os.close(self._descriptor)
                raise

    def _content(self) -> bytes:
        claim = {
            "digest": self.digest,
            "driver": self._driver,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return json.dumps(claim, indent=2).encode() + b"\n"

    def _refuse_others(self, found: Mapping[str, object] | None, names: Collection[str]) -> None:
        if found is None:
            present = {path.name for path in self.out.iterdir()}
            remedy = "give another folder, or --overwrite to replace it"
            refuse_taken(present, names, self._shown, remedy)
            return
        if is_locked(self._path):
            raise ConflictError(
                f"{self._shown} is being written by process {found.get('pid')} on "
                f"{found.get('host')} since {found.get('since')}; wait for it, or --overwrite to "
                "stop it"
            )
        if found.get("digest") != self.digest:
            raise ConflictError(
                f"{self._shown} holds an unfinished merge of another recipe or of sources that "
                f"have changed (plan {found.get('digest')}, this is {self.digest}); finish that "
                "one, give another place, or --overwrite to replace it"
            )

    def _clear(self) -> None:
        """Remove what another merge left, the index first: no reader finds half of anything."""
        for name in (INDEX_NAME, SINGLE_NAME, RECORD_NAME):
            (self.out / name).unlink(missing_ok=True)
        for path in self.out.iterdir():
            # What loaders read beside the weights would change how the new model loads.
            if path.is_file() and changes_loading(path.name):
                path.unlink()
        for child in (self.out / STATE_FOLDER).iterdir():
            if child.is_dir() and child != self.folder:
                # A driver that has not looked yet may be writing in it, and removes it in the end.
                shutil.rmtree(child, ignore_errors=True)

    def check(self) -> None:
        """Raise ConflictError if another driver has taken the destination."""
        found = _read_claim(self._path)
        if found is None or found.get("driver") != self._driver:
            whose = f"process {found.get('pid')} on {found.get('host')}" if found else "another run"
            raise ConflictError(
                f"{self._shown} was taken over by {whose} while this merge ran; nothing was "
                "published"
            )

    def receipts(self) -> dict[int, Receipt]:
        """Receipts of an earlier run, by unit; what cannot be read counts as not there.

        Shards that a driver killed in the middle of its commit has moved already are taken back:
        what is not as its receipt says has to be filled again beside what is.
        """
        found = {}
        for path in self.folder.glob("unit-*.json"):
            receipt = read_receipt(path.read_bytes())
            if receipt is not None:
                found[receipt.unit] = receipt
        for name in {receipt.shard for receipt in found.values()}:
            filled, final = self.folder / name, self.out / name
            if final.exists() and not filled.exists():
                move(final, filled)
        return found

    def keep(self, receipt: Receipt) -> None:
        """Write a receipt; the unit's data is on the disk already."""
        write_atomically(self.folder / f"unit-{receipt.unit:06}.json", receipt.as_json())

    def publish(
        self, plan: Plan, receipts: Mapping[int, Receipt], files: Mapping[str, bytes]
    ) -> None:
        """Make the checkpoint visible: shards, the files beside them, the index last.

        Raises:
            CommitError: A unit has no receipt, or a shard is not as long as planned. Nothing is
                published.
            ConflictError: Another driver has taken the destination.
        """
        check_complete(plan.units, receipts)
        self.publish_shards(plan.shards, files)

    def publish_shards(self, shards: Sequence[Shard], files: Mapping[str, bytes]) -> None:
        """Make filled shards and the files beside them visible; see `publish`."""
        with _exclusive(self.out):
            self.check()
            for shard in shards:
                self._publish_shard(shard.name, shard.nbytes)
            for name, content in files.items():
                self._publish_file(name, content)
            self._publish_file(INDEX_NAME, build_index(shards))
            self._tidy()

    def publish_files(self, names: Sequence[str]) -> None:
        """Make files that lie in the claim's folder visible, in this order, the index last."""
        with _exclusive(self.out):
            self.check()
            for name in names:
                move(self.folder / name, self.out / name)
            self._tidy()

    def _tidy(self) -> None:
        # From here on the checkpoint exists; what is left is tidying up. The claim goes first:
        # beside some of the receipts it would have a rerun fill published shards again.
        self._path.unlink(missing_ok=True)
        shutil.rmtree(self.out / STATE_FOLDER, ignore_errors=True)

    def _publish_file(self, name: str, content: bytes) -> None:
        # Drafted among what is tidied up, so that a driver killed here leaves nothing in OUT.
        write_atomically(self.folder / name, content)
        move(self.folder / name, self.out / name)

    def _publish_shard(self, name: str, nbytes: int) -> None:
        filled = self.folder / name
        length = filled.stat().st_size if filled.exists() else None
        if length != nbytes:
            raise CommitError(f"{filled}: planned {nbytes} bytes, found {length}", file=name)
        move(filled, self.out / name)

    def abandon(self) -> None:
        """Remove all that was written, and the destination if nothing else is in it."""
        with suppress(ConflictError), _exclusive(self.out):
            self.check()
            self._path.unlink()
            shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # it holds something, or is another driver's now
            self.out.rmdir()

    def close(self) -> None:
        """Let go of the destination. What is not published stays for the next run of this plan."""
        os.close(self._descriptor)
        if not self.folder.exists():
            return
        with _exclusive(self.out):
            found = _read_claim(self._path)
            if found is None or found.get("digest") != self.digest:
                # Another plan took the destination; what this one wrote meanwhile is of no use.
                shutil.rmtree(self.folder, ignore_errors=True)


def refuse_taken(
    present: Collection[str], names: Collection[str], location: str, remedy: str
) -> None:
    """Refuse a place that has a checkpoint, or a file that a merge would write over.

    Args:
        present: What is there.
        names: What is going to be published beside the index.
        location: The place, as messages name it.
        remedy: What to do instead.

    Raises:
        ConflictError: It is taken.
    """
    if taken := next((name for name in (INDEX_NAME, SINGLE_NAME, *names) if name in present), None):
        what = "a checkpoint" if taken in {INDEX_NAME, SINGLE_NAME} else "a file of that name"
        raise ConflictError(f"{location} already holds {what} ({taken}); {remedy}")
    for name in sorted(present):
        if "/" not in name and changes_loading(name):
            raise ConflictError(
                f"{location} holds a file of another model ({name}), which would change how this "
                f"one is loaded; {remedy}"
            )


def finished_record(out: Path, digest: str) -> dict[str, Any] | None:
    """raymerge.json of a checkpoint in `out` that this very plan has written, if there is one."""
    sizes = {path.name: path.stat().st_size for path in out.glob("*") if path.is_file()}
    if RECORD_NAME not in sizes:
        return None
    record = record_of((out / RECORD_NAME).read_bytes(), digest, sizes)
    if record is None:
        return None
    # The index is there, so this was published: a driver killed while it tidied up has left its
    # claim or some receipts. Whoever lives holds the claim's lock.
    if (out / STATE_FOLDER).exists():
        with suppress(StorageError), _exclusive(out):
            claim = out / STATE_FOLDER / CLAIM_NAME
            if not is_locked(claim):
                shutil.rmtree(out / STATE_FOLDER, ignore_errors=True)
    return record


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """One driver at a time: claims change hands, and commits happen, in here.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        (out / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Its last owner may have removed it while we waited for the lock.
            (out / STATE_FOLDER).mkdir(exist_ok=True)
            yield
        finally:
            # It stays if there is something in it.
            with suppress(OSError):
                (out / STATE_FOLDER).rmdir()
            os.close(descriptor)
    except RaymergeError:
        raise
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}; give a folder that can",
            file=str(error.filename) if error.filename else None,
        ) from error


def _read_claim(path: Path) -> Mapping[str, object] | None:
    try:
        claim = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}
