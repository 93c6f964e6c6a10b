"""Try to write to an object store, and whether it refuses what it is told to."""

from __future__ import annotations

import secrets
from contextlib import suppress

from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.index import INDEX_NAME
from raymerge.errors import StorageError
from raymerge.runtime.doctor.report import TRIAL_BYTES, Visit
from raymerge.runtime.doctor.sources import PATIENCE
from raymerge.runtime.object_claim import STATE_FOLDER
from raymerge.storage.identity import describe
from raymerge.storage.leftovers import find_leftovers, removal_rule
from raymerge.storage.objects import ObjectStore
from raymerge.storage.store import Access, Store
from raymerge.storage.trial import try_uploads
from raymerge.storage.urls import Location, Scheme

_SHOWN = 3
_GIVE = "Give a store with conditional writes, or a path"
_UNSEEN = f"two merges into one place would not see each other. {_GIVE}"


def try_objects(visit: Visit, where: Location, access: Access) -> None:
    """Write, read back and remove a megabyte; see that conditions hold and uploads abort.

    Raises:
        StorageError: It cannot be written.
    """
    visit.facts |= describe(where, access)
    store: Store = ObjectStore(where, access, patience=PATIENCE)
    present = store.pins()
    visit.facts["objects"] = f"{len(present)} below it"
    if INDEX_NAME in present:
        visit.note("it holds a checkpoint: a merge into it needs --overwrite")
    name = f"{STATE_FOLDER}/doctor-{secrets.token_hex(8)}"
    data = secrets.token_bytes(TRIAL_BYTES)
    visit.litter = f"{store.location}/{name}"
    try:
        visit.measure_latency(lambda: store.head(name))
        visit.measure_writing(len(data), lambda: store.put(name, data))
        _read_back(visit, store, name, data)
        _check_conditions(visit, store, name)
        try_uploads(where, access, PATIENCE, f"{name}-parts", data)
    except StorageError:
        with suppress(StorageError):
            _remove(store, name)
        raise
    _remove(store, name)
    visit.litter = None
    if store.head(name) is not None:
        visit.problem(f"{store.location}/{name} is there although it was removed; remove it")
    _note_leftovers(visit, where, access)


def _remove(store: Store, name: str) -> None:
    for each in (name, f"{name}-parts"):
        store.delete(each)


def _read_back(visit: Visit, store: Store, name: str, data: bytes) -> None:
    found: list[tuple[bytes, Pin] | None] = []
    visit.measure_reading(len(data), lambda: found.append(store.read(name)))
    if found[0] is None or found[0][0] != data:
        visit.problem(f"{store.location} does not give back what was written; do not use it")


def _check_conditions(visit: Visit, store: Store, name: str) -> None:
    """Claims stand and fall with these."""
    if store.create(name, b"second") is not None:
        visit.problem(
            f"{store.location} overwrites an object that was to be created only if it is absent "
            f"(If-None-Match): {_UNSEEN}"
        )
    first = store.put(name, b"first")
    if store.replace(name, b"second", first) is None:
        visit.problem(
            f"{store.location} refuses to replace an object that nobody has changed (If-Match): a "
            f"claim could not be renewed. {_GIVE}"
        )
        return
    if store.replace(name, b"third", first) is not None:
        visit.problem(
            f"{store.location} replaces an object that has changed meanwhile (If-Match): {_UNSEEN}"
        )


def _note_leftovers(visit: Visit, where: Location, access: Access) -> None:
    left = find_leftovers(where, access)
    rule = removal_rule(where)
    if left:
        named = ", ".join(sorted(set(left))[:_SHOWN])
        visit.note(
            f"{len(left)} unfinished uploads lie below it, of merges that run or were killed "
            f"({named}): the next merge of the same shards aborts them. {rule}"
        )
    elif left is None and rule:
        why = "raymerge[aws] and the right to list them" if where.scheme is Scheme.S3 else ""
        needs = f" (that needs {why})" if why else ""
        visit.note(f"whether killed uploads have left parts below it is not known{needs}. {rule}")
