"""A repository of the Hub as a destination: shards go up as they close, one commit shows them all.

Until that commit nothing of a merge is seen. What a later run has to know - receipts, figures of a
survey - lies on the driver's disk, in a folder that is claimed like a local destination:

    HF_HOME/raymerge/merges/<repository>@<branch>/.raymerge/<digest>/

Another machine that runs the same merge starts anew, and uploads only what the Hub does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from raymerge.checkpoint.index import INDEX_NAME, RECORD_NAME, build_index
from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, SourceError, StorageError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime.card import CARD_NAME
from raymerge.runtime.commit import Claim, refuse_taken
from raymerge.runtime.receipt import Receipt
from raymerge.runtime.record import record_of
from raymerge.runtime.side_files import changes_loading
from raymerge.storage.hub import HubFolder
from raymerge.storage.hub_cache import state_folder
from raymerge.storage.hub_upload import HubDestination, UploadedFile
from raymerge.storage.posix import write_atomically
from raymerge.storage.store import Access
from raymerge.storage.urls import Location

_PARENT_NAME = "parent"
"""The commit that the branch was at when it was found to be free, for a run that goes on."""


class RepositoryDestination:
    """See `Destination`. A unit is a whole shard and has one writer.

    A repository that is made here is private.

    Raises:
        ConflictError: A live driver of this machine or another plan holds it, or the branch has a
            checkpoint.
        StorageError: It cannot be reached, made or written.
    """

    def __init__(
        self, out: Location, access: Access, *, digest: str, names: list[str], overwrite: bool
    ) -> None:
        del access  # the Hub takes no options
        self._branch = HubDestination(str(out))
        self.location = self.units_at = str(out)
        self.figures_at: str | None = None
        # Files of the branch are looked for on the branch, so the claim has no names to protect.
        self._claim = Claim(
            state_folder(self._branch.location),
            digest=digest,
            overwrite=overwrite,
            shown=self.location,
        )
        try:
            self._parent = self._branch.open(private=True)
            if not overwrite:
                self._refuse_taken(names)
        except BaseException:
            if self._claim.is_new:
                self._claim.abandon()
            self._claim.close()
            raise

    def _refuse_taken(self, names: Sequence[str]) -> None:
        """Refuse a branch with a checkpoint, but for what a branch that we made was made from."""
        began_at = self._claim.folder / _PARENT_NAME
        head = str(self._parent.name.revision).encode()
        ours = self._branch.was_made or (began_at.exists() and began_at.read_bytes() == head)
        if not ours:
            # The Hub puts a README of its own beside nothing at all.
            wanted = [name for name in names if name != CARD_NAME]
            remedy = "give another repository or branch, or --overwrite to replace it"
            refuse_taken(self._parent.sizes(), wanted, self.location, remedy)
        write_atomically(began_at, head)

    def check(self) -> None:
        """See `Destination.check`."""
        self._claim.check()

    def check_space(
        self, needed_bytes: int, promised: MutableMapping[int, int] | None = None
    ) -> None:
        """See `Destination.check_space`: a unit that is written needs room for itself alone."""

    def receipts(self) -> dict[int, Receipt]:
        """See `Destination.receipts`: of those whose content the Hub still has."""
        found = self._claim.receipts()
        with_content = {
            number: upload for number, one in found.items() if (upload := _uploaded(one))
        }
        lost = {one.name for one in self._branch.missing(tuple(with_content.values()))}
        return {
            number: found[number] for number, one in with_content.items() if one.name not in lost
        }

    def trusts(self, unit: Unit, receipt: Receipt) -> bool:
        """See `Destination.trusts`: the Hub keeps content by its hash, and was asked."""
        upload = _uploaded(receipt)
        return upload is not None and upload.size_bytes == unit.shard_bytes

    def keep(self, receipt: Receipt) -> None:
        """See `Destination.keep`."""
        self._claim.keep(receipt)

    def read_figures(self, name: str) -> bytes | None:
        """See `Figures.read_figures`."""
        path = self._claim.folder / name
        return path.read_bytes() if path.exists() else None

    def keep_figures(self, name: str, content: bytes) -> None:
        """See `Figures.keep_figures`."""
        write_atomically(self._claim.folder / name, content)

    def prepare(self, shard: Shard) -> None:
        """See `Destination.prepare`: a shard is whatever is uploaded under its name."""

    def shard_sha256(self, shard: Shard, last: Receipt) -> str:
        """See `Destination.shard_sha256`: that of its one unit."""
        assert last.shard_sha256 is not None, (shard.name, last)
        return last.shard_sha256

    def publish(
        self, plan: Plan, receipts: Mapping[int, Receipt], files: Mapping[str, bytes]
    ) -> None:
        """See `Destination.publish`: one commit, or none."""
        uploads = [_uploaded(receipts[n.number]) for n in plan.units if n.number in receipts]
        whole = [upload for upload in uploads if upload is not None]
        if len(whole) < len(plan.units):
            raise CommitError(f"{len(plan.units) - len(whole)} shards were not uploaded")
        self._claim.check()
        published = {*(shard.name for shard in plan.shards), *files, INDEX_NAME}
        stale = [
            name for name in self._parent.sizes() if name not in published and changes_loading(name)
        ]
        self._branch.commit(
            whole,
            {**files, INDEX_NAME: build_index(plan.shards)},
            deletes=stale,
            message=f"Merge {plan.digest}",
            parent=self._parent.name.revision,
        )
        self._claim.abandon()

    def close(self) -> None:
        """See `Destination.close`."""
        self._claim.close()


def finished_on_hub(out: Location, digest: str, access: Access) -> dict[str, Any] | None:
    """See `destination.finished`."""
    try:
        branch = HubFolder(str(out), cache=access.cache)
    except SourceError as error:
        if error.retryable:  # it was asked for as long as there is patience
            raise StorageError(error.message, file=error.file, retryable=True) from error
        return None  # it is made when it is claimed
    sizes = branch.sizes()
    raw = branch.read(RECORD_NAME, 0, sizes[RECORD_NAME]) if RECORD_NAME in sizes else b""
    return record_of(raw, digest, sizes)


def _uploaded(receipt: Receipt) -> UploadedFile | None:
    stored = receipt.stored
    if "sha256" not in stored or receipt.shard_sha256 != stored["sha256"]:
        return None
    return UploadedFile(receipt.shard, receipt.stop - receipt.start, stored["sha256"])
