"""An object store as a destination: claim, receipts and commit without a lock or a rename.

    OUT/.raymerge/claim.json          created if absent; its driver keeps changing it while it lives
    OUT/.raymerge/<digest>/           receipts, survey figures
    OUT/model-...safetensors          one upload each, under its final name
    OUT/model.safetensors.index.json  written last: this is the commit

A claim changes hands by compare-and-swap alone. Its driver replaces it every few seconds, which
shows that it lives, and before it publishes to say so: whoever comes with `--overwrite` then waits
until that is done. Nobody finds a checkpoint where there is no index.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME, SINGLE_NAME, build_index
from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, ConflictError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.plan.ranges import MAX_RANGE_BYTES
from raymerge.runtime.commit import refuse_taken
from raymerge.runtime.object_claim import CLAIM_NAME, STATE_FOLDER, ObjectClaim
from raymerge.runtime.receipt import Receipt, check_complete, read_receipt
from raymerge.runtime.record import record_of
from raymerge.runtime.side_files import changes_loading
from raymerge.runtime.stopping import LoosePool
from raymerge.storage.objects import ObjectFolder, ObjectStore
from raymerge.storage.store import Access, Store
from raymerge.storage.urls import Location

_log = logging.getLogger(__name__)

PARALLEL_REQUESTS = 16
"""Small objects read, written or removed at once: each is a round trip and little else."""


class ObjectDestination:
    """See `Destination`. A unit is a whole shard and has one writer.

    Raises:
        ConflictError: A live driver, another plan or a finished checkpoint holds the place.
        StorageError: It cannot be reached, or it knows no conditional writes.
    """

    def __init__(
        self, out: Location, access: Access, *, digest: str, names: list[str], overwrite: bool
    ) -> None:
        store = ObjectStore(out, access)
        self._store: Store = store
        self._folder = ObjectFolder(out, access)
        self._abort_leftovers = store.abort_leftovers
        self.location = self.units_at = store.location
        self._state = f"{STATE_FOLDER}/{digest}/"
        self._errands = LoosePool(1)
        self.figures_at: str | None = f"{store.location}/{STATE_FOLDER}/{digest}"
        if not overwrite:
            _refuse_taken(self._store.pins(), names, self.location)
        self._claim = ObjectClaim(self._store, digest=digest, overwrite=overwrite)
        try:
            # Listed anew: until the claim was ours another driver may have written, or committed.
            present = self._store.pins()
            if overwrite:
                self._clear(present, names)
            elif self._claim.is_new:
                _refuse_taken(present.keys() - {CLAIM_NAME}, names, self.location)
            if overwrite or not self._claim.is_new:
                for advice in store.abort_leftovers(names):
                    _log.warning("%s", advice)
        except ConflictError:
            self._claim.remove()
            raise
        except BaseException:
            self._claim.release()
            raise

    def _clear(self, present: Mapping[str, object], names: Collection[str]) -> None:
        """Remove what another merge left, the index first: no reader finds half of anything.

        What is going to be written anyway may be an earlier run's of this very merge, and stays.
        """
        for name in (INDEX_NAME, SINGLE_NAME, RECORD_NAME):
            if name in present:
                self._store.delete(name)
        stale = [
            name
            for name in present
            # What loaders read beside the weights would change how the new model loads.
            if ("/" not in name and changes_loading(name) and name not in names)
            or (name.startswith(f"{STATE_FOLDER}/") and not name.startswith(self._state))
        ]
        _delete(self._store, [name for name in stale if name != CLAIM_NAME])

    def check(self) -> None:
        """See `Destination.check`."""
        self._claim.check()

    def check_space(
        self, needed_bytes: int, promised: MutableMapping[int, int] | None = None
    ) -> None:
        """See `Destination.check_space`: a store does not say how much it holds."""

    def receipts(self) -> dict[int, Receipt]:
        """See `Destination.receipts`."""
        names = [name for name in self._store.pins() if name.startswith(f"{self._state}unit-")]
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            found = [read[0] for read in pool.map(self._store.read, names) if read]
        receipts = filter(None, map(read_receipt, found))
        return {receipt.unit: receipt for receipt in receipts}

    def trusts(self, unit: Unit, receipt: Receipt) -> bool:
        """See `Destination.trusts`: the object has the length and the ETag it was left with."""
        pin = self._store.head(unit.shard)
        return pin is not None and _is_stored(pin, unit.shard_bytes, receipt)

    def keep(self, receipt: Receipt) -> None:
        """See `Destination.keep`."""
        name = f"{self._state}unit-{receipt.unit:06}.json"
        # On another thread: an interruption would have to wait for the answer of this one's.
        self._errands.submit(self._store.put, name, receipt.as_json()).result()

    def read_figures(self, name: str) -> bytes | None:
        """See `Figures.read_figures`."""
        found = self._store.read(self._state + name)
        return found[0] if found else None

    def keep_figures(self, name: str, content: bytes) -> None:
        """See `Figures.keep_figures`."""
        self._store.put(self._state + name, content)

    def prepare(self, shard: Shard) -> None:
        """See `Destination.prepare`: a shard is whatever is uploaded under its name."""

    def shard_sha256(self, shard: Shard, last: Receipt) -> str:
        """See `Destination.shard_sha256`: that of its one unit."""
        assert last.shard_sha256 is not None, (shard.name, last)
        return last.shard_sha256

    def publish(
        self, plan: Plan, receipts: Mapping[int, Receipt], files: Mapping[str, bytes]
    ) -> None:
        """See `Destination.publish`."""
        check_complete(plan.units, receipts)
        self._claim.check()
        present = self._store.pins()
        for unit in plan.units:
            pin, receipt = present.get(unit.shard), receipts[unit.number]
            if pin is None or not (
                _is_stored(pin, unit.shard_bytes, receipt) or self._is_alike(pin, unit, receipt)
            ):
                found = f"{pin.size_bytes} bytes of another upload" if pin else "nothing"
                raise CommitError(
                    f"{self.location}/{unit.shard}: planned {unit.shard_bytes} bytes, found "
                    f"{found}; run the same command again",
                    file=unit.shard,
                )
        self._claim.begin_commit()
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            list(pool.map(self._store.put, files.keys(), files.values()))
        self._claim.begin_commit()
        if self._store.create(INDEX_NAME, build_index(plan.shards)) is None:
            raise ConflictError(f"{self.location} was published by another run meanwhile")
        # From here on the checkpoint exists; what is left is tidying up.
        self._abort_leftovers([shard.name for shard in plan.shards])
        # The claim goes last: whoever waits for it begins in the same folder.
        _delete(self._store, [n for n in self._store.pins() if n.startswith(self._state)])
        self._claim.remove()

    def _is_alike(self, pin: Pin, unit: Unit, receipt: Receipt) -> bool:
        """Whether another upload than the receipt's has left the same bytes: it reads them.

        A copy of a unit that was given up may have been stored all the same, and not every store
        has a tag of what an object holds.
        """
        if pin.size_bytes != unit.shard_bytes:
            return False
        digest = hashlib.sha256()
        for start in range(0, pin.size_bytes, MAX_RANGE_BYTES):
            stop = min(start + MAX_RANGE_BYTES, pin.size_bytes)
            digest.update(self._folder.fetch(unit.shard, start, stop, pin))
        return digest.hexdigest() == receipt.shard_sha256

    def close(self) -> None:
        """See `Destination.close`."""
        self._errands.close()
        self._claim.release()


def finished_objects(out: Location, digest: str, access: Access) -> dict[str, Any] | None:
    """See `destination.finished`."""
    store = ObjectStore(out, access)
    found = store.read(RECORD_NAME)
    if found is None:
        return None
    present = store.pins()
    sizes = {name: pin.size_bytes for name, pin in present.items()}
    record = record_of(found[0], digest, sizes)
    if record is None:
        return None
    # A driver killed while it tidied up has left its claim or some receipts.
    left = [name for name in present if name.startswith(f"{STATE_FOLDER}/{digest}/")]
    if (claim := store.read(CLAIM_NAME)) and f'"{digest}"'.encode() in claim[0]:
        left.append(CLAIM_NAME)
    _delete(store, left)
    return record


def _delete(store: Store, names: Iterable[str]) -> None:
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        list(pool.map(store.delete, names))


def _refuse_taken(present: Collection[str], names: list[str], location: str) -> None:
    if CLAIM_NAME not in present:
        refuse_taken(present, names, location, "give another place, or --overwrite to replace it")


def _is_stored(pin: Pin, nbytes: int, receipt: Receipt) -> bool:
    return pin.size_bytes == nbytes and pin.tag == receipt.stored.get("etag")
