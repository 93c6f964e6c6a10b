"""What a worker shows before its first unit: that it sees what the driver sees.

A local folder that is not shared would else be found when each node had filled a part of the
checkpoint, on a disk of its own.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymerge.errors import RaymergeError, SourceError, StorageError
from raymerge.plan.graph import PlannedSource
from raymerge.storage import read_file
from raymerge.storage.posix import PosixFolder

if TYPE_CHECKING:
    from raymerge.runtime.destination import Destination
    from raymerge.runtime.settings import RunSettings
    from raymerge.storage.store import Access

NONCE_NAME = "nonce"
PROBE_BYTES = 8
"""Of a source's file: the length of its header."""


@dataclass(frozen=True, slots=True)
class Nonce:
    """Something that nobody can know who does not read the destination."""

    location: str
    """Path or URL of the file that it is in."""
    content: bytes


def leave_nonce(destination: Destination) -> Nonce | None:
    """Have the driver write a nonce; None where workers have nothing to read."""
    if destination.figures_at is None:
        return None
    nonce = Nonce(f"{destination.figures_at}/{NONCE_NAME}", secrets.token_hex(16).encode())
    destination.keep_figures(NONCE_NAME, nonce.content)
    return nonce


def preflight(settings: RunSettings) -> None:
    """Read what the driver left in each destination, and the beginning of a file of every source.

    Raises:
        StorageError: The destination is not what the driver has claimed.
        SourceError: A source cannot be read here, or is another than the planned one.
    """
    for nonce in settings.nonces:
        _read_nonce(nonce, settings.access)
    for source in settings.sources:
        if source.pins:
            _read_source(source, settings)


def _read_nonce(nonce: Nonce, access: Access) -> None:
    try:
        found = read_file(nonce.location, access=access)
    except RaymergeError as error:
        raise StorageError(
            f"what the driver wrote to the destination cannot be read here: {error} {_advice()}",
            file=nonce.location,
            retryable=error.retryable,
        ) from error
    if found != nonce.content:
        raise StorageError(
            f"{nonce.location} holds something else here than what the driver wrote. {_advice()}",
            file=nonce.location,
        )


def _read_source(source: PlannedSource, settings: RunSettings) -> None:
    name, pin = next(iter(source.pins.items()))
    try:
        folder = settings.open_source(source, settings.access)
        if not isinstance(folder, PosixFolder):
            folder.fetch(name, 0, PROBE_BYTES, pin)
            return
        folder.read(name, 0, PROBE_BYTES)
        found = folder.pin(name)
    except SourceError as error:
        error.message = f"{error.message}. {_advice()}"
        raise
    if found != pin:
        raise SourceError(
            f"{source.label}: {folder.path(name)} is here another file than on the driver's node "
            f"({found.size_bytes} bytes, {found.tag}; planned {pin.size_bytes}, {pin.tag}). "
            f"{_advice()}",
            source=source.label,
            file=name,
        )


def _advice() -> str:
    return "Give a folder that all nodes share, or a URL, and credentials that every node has."
