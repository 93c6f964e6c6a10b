"""Try to read from a place: list it, ask for a byte a few times, read a megabyte."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping

from raymerge.checkpoint.catalog import PICKLED
from raymerge.runtime.doctor.report import TRIAL_BYTES, Visit
from raymerge.storage import SourceFolder, open_folder, source
from raymerge.storage.patience import Patience
from raymerge.storage.posix import PosixFolder
from raymerge.storage.store import Access
from raymerge.storage.urls import Location, Scheme
from raymerge.units import format_bytes

PATIENCE = Patience(total_s=8.0, first_contact_s=8.0)


def try_source(visit: Visit, access: Access) -> None:
    """Read from a place what a merge would.

    Raises:
        SourceError: It cannot be read.
    """
    where = source(visit.url)
    folder = _open(visit, where, access)
    sizes = folder.sizes()
    visit.facts["files"] = f"{len(sizes)}, {format_bytes(sum(sizes.values()))}"
    _look_at(visit, sizes)
    if where.scheme is Scheme.HUB and access.cache:
        _check_cache(visit, folder, sizes)
    if not sizes or not max(sizes.values()):
        return
    name = max(sizes, key=sizes.__getitem__)
    nbytes = min(sizes[name], TRIAL_BYTES)
    read = _reading(folder, name)
    visit.measure_latency(lambda: read(0, 1))
    visit.measure_reading(nbytes, lambda: read(0, nbytes))
    visit.facts["read from"] = name


def user() -> str:
    """Who this process runs as; what a container runs as often has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def _open(visit: Visit, where: Location, access: Access) -> SourceFolder:
    if where.is_objects:
        from raymerge.storage.identity import describe
        from raymerge.storage.objects import ObjectFolder

        visit.facts |= describe(where, access)
        return ObjectFolder(where, access, patience=PATIENCE)
    if where.scheme is Scheme.HUB:
        _describe_repository(visit)
    else:
        visit.facts["identity"] = user()
    folder = open_folder(visit.url, label=visit.url, access=access)
    if where.scheme is Scheme.HUB:
        visit.facts["commit"] = folder.location.rpartition("@")[2]
    return folder


def _reading(folder: SourceFolder, name: str) -> Callable[[int, int], object]:
    if isinstance(folder, PosixFolder):
        return lambda start, stop: folder.read(name, start, stop)
    pin = folder.pin(name)
    if folder.location.startswith("hf://"):
        from raymerge.storage.hub_account import is_offline

        if is_offline():
            return lambda start, stop: folder.read(name, start, stop)
    return lambda start, stop: folder.fetch(name, start, stop, pin)


def _look_at(visit: Visit, sizes: Mapping[str, int]) -> None:
    """Whether there is anything to merge, by the names."""
    if any(name.endswith(".safetensors") for name in sizes):
        return
    if any(name.endswith(PICKLED) for name in sizes):
        visit.problem(
            f"{visit.url} holds pickles and no .safetensors file; `raymerge convert` makes some of "
            "a folder on this machine"
        )
    else:
        visit.problem(
            f"{visit.url} holds no .safetensors file; give the folder of a checkpoint, not the one "
            "above it"
        )


def _describe_repository(visit: Visit) -> None:
    from raymerge.storage import hub_account

    visit.facts["endpoint"] = hub_account.hub_address()
    if hub_account.is_offline():
        visit.note("HF_HUB_OFFLINE is set: what is read comes from the cache of this node")
        return
    who = hub_account.account(visit.url)
    visit.facts["identity"] = f"{who.name}, token to {who.role}" if who else "nobody: no token"
    if found := hub_account.repository(visit.url):
        visit.facts["repository"] = (
            f"{'private' if found.private else 'public'}, {'' if found.gated else 'not '}gated"
        )


def _check_cache(visit: Visit, folder: SourceFolder, sizes: Mapping[str, int]) -> None:
    from raymerge.storage.hub import HubFolder
    from raymerge.storage.hub_account import cache_room

    assert isinstance(folder, HubFolder), folder
    room = cache_room()
    wanted = folder.uncached_bytes(name for name in sizes if name.endswith(".safetensors"))
    visit.facts["cache"] = (
        f"{room.path}, {format_bytes(room.free_bytes)} free, {format_bytes(wanted)} to fetch"
    )
    if wanted > room.free_bytes:
        visit.problem(
            f"{visit.url}: {format_bytes(wanted)} would be fetched into {room.path}, which has "
            f"{format_bytes(room.free_bytes)} free; set HF_HOME to a larger disk, or give "
            "--no-cache to read from the Hub without a copy here"
        )
