"""From place to place, each within its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

from raymerge.errors import RaymergeError, StorageError
from raymerge.runtime.doctor.report import Checkup, Diagnosis, Visit
from raymerge.runtime.doctor.sources import try_source
from raymerge.storage import destination
from raymerge.storage.store import Access
from raymerge.storage.urls import Scheme

LIMIT_S = 28.0
"""For one place. Not a round number: a command that has to end within 30 s also starts and ends."""
_TIMES = {"connect_timeout": "5s", "read_timeout": "8s", "timeout": "15s"}
"""Of a request to an object store, unless an option says otherwise."""


def examine(
    sources: Sequence[str],
    destinations: Sequence[str],
    access: Access,
    *,
    limit_s: float = LIMIT_S,
) -> Diagnosis:
    """Try all places, one after another: what they take is measured.

    Args:
        sources: Paths and URLs to read from.
        destinations: Paths and URLs to write to.
        access: How storage is reached.
        limit_s: Seconds for each.
    """
    access = replace(access, options={**_TIMES, **access.options})
    reports = [_tried(Visit(url, "source"), access, limit_s) for url in sources]
    reports += [_tried(Visit(url, "destination"), access, limit_s) for url in destinations]
    return Diagnosis(tuple(reports))


def _tried(visit: Visit, access: Access, limit_s: float) -> Checkup:
    """What is known of a place once it was tried, or once its time is over."""
    failed: list[BaseException] = []

    def attend() -> None:
        try:
            _try(visit, access)
        except RaymergeError as error:
            visit.problem(str(error))
        except OSError as error:
            what = f"{error.filename or visit.url}: {error.strerror or error}"
            visit.problem(f"{what}. Check the path and who may use it")
        except BaseException as error:  # noqa: BLE001 - raised again where it is seen
            failed.append(error)

    # A request that hangs cannot be called back; the command ends without it.
    thread = Thread(target=attend, daemon=True)
    thread.start()
    thread.join(limit_s)
    if failed:
        raise failed[0]
    if thread.is_alive():
        left = f" It may have left {visit.litter}; remove it." if visit.litter else ""
        visit.problem(
            f"{visit.url}: it was not done within {limit_s:g} s. Check the endpoint, the network "
            f"and the proxy.{left}"
        )
    return visit.report()


def _try(visit: Visit, access: Access) -> None:
    if visit.role == "source":
        try_source(visit, access)
        return
    where = destination(visit.url)
    if where.scheme is Scheme.FILE:
        from raymerge.runtime.doctor.folders import try_folder

        try_folder(visit, Path(where.path))
    elif where.scheme is Scheme.HUB:
        from raymerge.runtime.doctor.repositories import try_repository

        try_repository(visit, where)
    elif where.is_objects:
        from raymerge.runtime.doctor.objects import try_objects

        try_objects(visit, where, access)
    else:
        raise StorageError(
            f"{where} is read from and not written to. Give a path, an object store or a "
            "repository of the Hub"
        )
