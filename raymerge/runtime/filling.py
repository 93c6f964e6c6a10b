"""What is written of a plan: shards made ready, receipts kept, shards hashed, all published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from raymerge.checkpoint.index import RECORD_NAME
from raymerge.checkpoint.layout import Shard
from raymerge.kernels.identity import kernel_hash
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.plan.units import dispatch_order
from raymerge.runtime.card import CARD_NAME, model_card
from raymerge.runtime.destination import Destination
from raymerge.runtime.events import OnEvent, ShardDone, UnitsResumed, nobody
from raymerge.runtime.ledger import LEDGER_NAMES, ledger
from raymerge.runtime.receipt import Receipt, check_complete
from raymerge.runtime.record import ShardRecord, run_record
from raymerge.runtime.side_files import why_left_out

BESIDE_THREADS = 2
"""Shards that are allocated or hashed at once, beside the workers: either takes less time than
filling one."""


def names_of(plan: Plan) -> list[str]:
    """Files that are going to be published beside the index."""
    shards = (shard.name for shard in plan.shards)
    copied = (name for name in plan.donor.side_files if why_left_out(name, 0) is None)
    return [*shards, CARD_NAME, RECORD_NAME, *LEDGER_NAMES.values(), *copied]


class Filling:
    """Receipts and shards of a plan that is being run.

    Args:
        plan: Which.
        destination: Where its units are written.
        on_event: Told of units that are resumed with, and of shards that are whole.
    """

    def __init__(self, plan: Plan, destination: Destination, on_event: OnEvent = nobody) -> None:
        self._tell = on_event
        self._plan = plan
        self._destination = destination
        self._shards: Mapping[str, Shard] = {shard.name: shard for shard in plan.shards}
        self._left = Counter(unit.shard for unit in plan.units)
        self._prepared: dict[str, Future[None]] = {}
        self._pool = ThreadPoolExecutor(BESIDE_THREADS)
        self._hashes: dict[str, Future[str]] = {}
        self.receipts: dict[int, Receipt] = {}
        self.resumed: frozenset[int] = frozenset()
        """Units that an earlier run has written."""

    def trust(self, found: Mapping[int, Receipt]) -> None:
        """Accept the receipts whose bytes are still what they say, and resume with their units."""
        known = [unit for unit in self._plan.units if unit.number in found]
        whole = self._pool.map(lambda unit: self._is_whole(unit, found[unit.number]), known)
        trusted = [unit for unit, good in zip(known, whole, strict=True) if good]
        for unit in trusted:
            self._count(unit, found[unit.number])
        self.resumed = frozenset(unit.number for unit in trusted)
        if trusted:
            nbytes = sum(unit.nbytes for unit in trusted)
            self._tell(UnitsResumed(units=len(trusted), nbytes=nbytes))

    def _is_whole(self, unit: Unit, receipt: Receipt) -> bool:
        planned = unit.shard, unit.start, unit.stop
        said = receipt.shard, receipt.start, receipt.stop
        return said == planned and self._destination.trusts(unit, receipt)

    def prepare_ahead(self) -> None:
        """Begin to prepare every shard that is not filled, while the engine starts."""
        for unit in dispatch_order(self._plan.units):
            if self._left[unit.shard] and unit.shard not in self._prepared:
                shard = self._shards[unit.shard]
                prepared = self._pool.submit(self._destination.prepare, shard)
                self._prepared[shard.name] = prepared

    def prepare(self, unit: Unit) -> None:
        """Before a unit is begun: the destination is still ours, its shard can be written."""
        self._destination.check()
        self._prepared[unit.shard].result()

    def land(self, unit: Unit, receipt: Receipt) -> None:
        """Keep a unit's receipt, and hash its shard if it was the last one."""
        self._destination.keep(receipt)
        self._count(unit, receipt)

    def _count(self, unit: Unit, receipt: Receipt) -> None:
        again = unit.number in self.receipts
        # Of two writers of an object it is the later one's tag that is found there.
        self.receipts[unit.number] = receipt
        if again:
            return
        self._left[unit.shard] -= 1
        if not self._left[unit.shard]:
            shard = self._shards[unit.shard]
            self._hashes[shard.name] = self._pool.submit(self._finish, shard, receipt)

    def _finish(self, shard: Shard, receipt: Receipt) -> str:
        sha256 = self._destination.shard_sha256(shard, receipt)
        self._tell(ShardDone(shard=shard.name, nbytes=shard.nbytes, sha256=sha256))
        return sha256

    def shard_records(self) -> tuple[ShardRecord, ...]:
        """Name, length and sha256 of every shard, once all are filled."""
        check_complete(self._plan.units, self.receipts)
        return tuple(
            ShardRecord(shard.name, shard.nbytes, self._hashes[shard.name].result())
            for shard in self._plan.shards
        )

    def publish(self, beside: Mapping[str, bytes]) -> tuple[ShardRecord, ...]:
        """Commit, once every unit has landed.

        Args:
            beside: Files that belong beside the weights, by name.

        Raises:
            CommitError: Something is missing. Nothing is published.
            ConflictError: Another driver has taken the destination.
        """
        shards = self.shard_records()
        on_hub = self._destination.location.startswith("hf://")
        files = {
            **beside,
            **ledger(self._plan, self.receipts, resumed=self.resumed),
            CARD_NAME: model_card(self._plan, on_hub=on_hub),
            RECORD_NAME: run_record(self._plan, shards=shards, kernels=kernel_hash()),
        }
        self._destination.publish(self._plan, self.receipts, files)
        return shards

    def close(self) -> None:
        """Drop what has not begun; a run that failed does not wait for it."""
        self._pool.shutdown(cancel_futures=True)
