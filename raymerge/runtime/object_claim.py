"""Whose a destination in an object store is: one small object that changes by compare-and-swap.

running     its driver replaces it every `beat_s`: whoever watches sees that it lives
committing  what is seen is being written, the index last; others wait until that is over
left        its driver ended without publishing: the next run of the same plan goes on
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal

from raymerge.checkpoint.folder import Pin
from raymerge.errors import ConflictError, StorageError
from raymerge.storage.store import Store

_log = logging.getLogger(__name__)

STATE_FOLDER = ".raymerge"
CLAIM_NAME = f"{STATE_FOLDER}/claim.json"
BEAT_S = 10.0
"""Between two signs of life: seldom enough to cost nothing, so often that nobody waits long."""
SILENT_BEATS = 3
"""Beats without a sign of life after which a driver on another machine is taken for dead."""
LEAVE_S = 5.0
"""Longest wait for a store to hear that a driver has left."""

_ours: set[object] = set()
"""Drivers of this process that have not ended; a store may not have heard of those that have."""

State = Literal["running", "committing", "left"]


class ObjectClaim:
    """A claim that is ours, until `release` or until another driver overwrites it.

    Args:
        store: The destination.
        digest: Digest of the plan that is to be written.
        overwrite: Take it whoever holds it.
        beat_s: Seconds between signs of life; all waits are multiples of it.

    Raises:
        ConflictError: A live driver or another plan holds it.
    """

    def __init__(
        self, store: Store, *, digest: str, overwrite: bool, beat_s: float = BEAT_S
    ) -> None:
        self._store = store
        self._digest = digest
        self._beat_s = beat_s
        self._driver = secrets.token_hex(8)
        self._beats = 0
        self._lost = False
        self._state: State = "running"
        self.is_new = False
        """Whether nobody has claimed the place before."""
        self._lock = Lock()
        self._ended = Event()
        _ours.add(self._driver)
        try:
            self._pin = self._take(overwrite=overwrite)
        except BaseException:
            _ours.discard(self._driver)
            raise
        self._heart = Thread(target=self._live, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise ConflictError if another driver has taken the destination."""
        if self._lost:
            found, _ = self._found()
            whose = _whose(found) if found else "another run"
            raise ConflictError(
                f"{self._store.location} was taken over by {whose} while this merge ran; nothing "
                "was published"
            )

    def begin_commit(self) -> None:
        """Keep other drivers away until the checkpoint is there; also before its index is written.

        Raises:
            ConflictError: One has the destination already.
        """
        self._state = "committing"
        self._replace()
        self.check()

    def remove(self) -> None:
        """The checkpoint exists, or will never: nobody has to be kept away any more."""
        _ours.discard(self._driver)
        self._ended.set()
        self._heart.join()
        self._store.delete(CLAIM_NAME)

    def release(self) -> None:
        """Let go of what was not published, so that the next run need not watch for our life."""
        _ours.discard(self._driver)
        if not self._ended.is_set():
            self._state = "left"
            self._ended.set()
            # A courtesy, and not worth a long wait for a store that does not answer.
            self._heart.join(LEAVE_S)

    def _take(self, *, overwrite: bool) -> Pin:
        while True:
            if pin := self._store.create(CLAIM_NAME, self._content()):
                self.is_new = True
                return pin
            found, pin = self._found()
            if pin is None:
                continue  # it went while we looked
            if not overwrite:
                self._refuse(found, pin)
            elif found.get("state") == "committing" and self._changes(pin):
                continue
            if taken := self._store.replace(CLAIM_NAME, self._content(), pin):
                if (
                    overwrite
                    and found.get("state") == "running"
                    and _lives_here(found) is not False
                ):
                    # Its driver finds out with its next beat; what it still sends must not come
                    # after what we write.
                    _log.warning("waiting %g s for %s to stop", 1.5 * self._beat_s, _whose(found))
                    time.sleep(1.5 * self._beat_s)
                return taken

    def _refuse(self, found: Mapping[str, Any], pin: Pin) -> None:
        if found.get("digest") != self._digest:
            raise ConflictError(
                f"{self._store.location} holds an unfinished merge of another recipe or of sources "
                f"that have changed (plan {found.get('digest')}, this is {self._digest}), begun by "
                f"{_whose(found)}; finish that one, give another place, or --overwrite to replace "
                "it"
            )
        if found.get("state") == "left":
            return
        lives = _lives_here(found)
        if lives is None:
            _log.warning(
                "watching for %g s whether %s still writes %s",
                SILENT_BEATS * self._beat_s,
                _whose(found),
                self._store.location,
            )
            lives = self._changes(pin)
        if lives:
            raise ConflictError(
                f"{self._store.location} is being written by {_whose(found)}; wait for it, or "
                "--overwrite to stop it"
            )

    def _changes(self, pin: Pin) -> bool:
        """Whether a claim is replaced or removed within the silence that proves a driver dead."""
        deadline = time.monotonic() + SILENT_BEATS * self._beat_s
        while time.monotonic() < deadline:
            time.sleep(self._beat_s / 10)
            if self._store.head(CLAIM_NAME) != pin:
                return True
        return False

    def _live(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                self._replace()
            except StorageError as error:
                # The next beat may come through; whoever takes us for dead has the same plan.
                _log.warning("the claim of %s was not renewed: %s", self._store.location, error)
            if self._lost:
                return
        if self._state == "left":
            with suppress(StorageError):
                self._replace()

    def _replace(self) -> None:
        with self._lock:
            self._beats += 1
            pin = self._store.replace(CLAIM_NAME, self._content(), self._pin)
            if pin is None:
                self._lost = self._lost or not self._is_ours()
            else:
                self._pin = pin

    def _is_ours(self) -> bool:
        """Whether the claim is what we sent last: a retried request finds its own first one."""
        found, pin = self._found()
        if pin is None or found.get("driver") != self._driver:
            return False
        self._pin = pin
        return found.get("beats") == self._beats

    def _found(self) -> tuple[Mapping[str, Any], Pin | None]:
        read = self._store.read(CLAIM_NAME)
        if read is None:
            return {}, None
        raw, pin = read
        try:
            claim = json.loads(raw)
        except ValueError:
            return {}, pin
        return (claim if isinstance(claim, dict) else {}), pin

    def _content(self) -> bytes:
        claim = {
            "digest": self._digest,
            "driver": self._driver,
            "state": self._state,
            "beats": self._beats,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "seen": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        return json.dumps(claim, indent=2).encode() + b"\n"


def _whose(claim: Mapping[str, Any]) -> str:
    return f"process {claim.get('pid')} on {claim.get('host')} (last seen {claim.get('seen')})"


def _lives_here(claim: Mapping[str, Any]) -> bool | None:
    """Whether a claim's driver is alive, if it ran where this process can tell."""
    if claim.get("machine") != _machine():
        return None
    if claim.get("pid") == os.getpid():
        return claim.get("driver") in _ours
    return claim.get("started") == _started(claim.get("pid"))


def _machine() -> str:
    """This boot of this machine, and which of its processes are seen from here."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path


def _started(pid: object) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name before it is in brackets and may hold anything, brackets and blanks too.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
