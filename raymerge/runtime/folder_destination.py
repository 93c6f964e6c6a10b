"""A local folder as a destination: shards are filled by several units at planned offsets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from raymerge.checkpoint.layout import Shard
from raymerge.errors import CommitError, StorageError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime.commit import Claim
from raymerge.runtime.read_back import ReadBack, file_sha256, whole_sha256
from raymerge.runtime.receipt import Receipt
from raymerge.storage.mounts import free_bytes
from raymerge.storage.posix import PosixShard, write_atomically
from raymerge.units import format_bytes


class FolderDestination:
    """See `Destination`. Units are written in the claim's folder; a commit renames its shards.

    Args:
        out: The folder.
        digest: The plan's.
        names: Files that are going to be published beside the index.
        overwrite: Take it whoever holds it.
        read_back: Hashes shards that several units have filled, for several destinations.

    Raises:
        ConflictError: A live driver, another plan or a finished checkpoint holds the folder.
    """

    def __init__(
        self,
        out: Path,
        *,
        digest: str,
        names: list[str],
        overwrite: bool,
        read_back: ReadBack | None = None,
    ) -> None:
        self._claim = Claim(out, digest=digest, overwrite=overwrite, names=names)
        self._folder = self._claim.folder
        self.location = str(out)
        self.units_at = str(self._folder)
        self.figures_at: str | None = self.units_at
        self._hash_file = read_back.sha256 if read_back else whole_sha256

    def check(self) -> None:
        """See `Destination.check`."""
        self._claim.check()

    def check_space(
        self, needed_bytes: int, promised: MutableMapping[int, int] | None = None
    ) -> None:
        """See `Destination.check_space`; what an earlier run has written counts as there."""
        present = sum(path.stat().st_blocks * 512 for path in self._folder.glob("*.safetensors"))
        needed = max(0, needed_bytes - present)
        promised = {} if promised is None else promised
        device = self._folder.stat().st_dev
        others, free = promised.get(device, 0), free_bytes(self._folder)
        if needed > free - others:
            shared = f", of which other trials take {format_bytes(others)}," if others else ""
            raise StorageError(
                f"{self.location} has {format_bytes(free)} ({free} bytes) free{shared} and "
                f"{format_bytes(needed)} ({needed} bytes) are needed; free some or give another "
                "folder"
            )
        promised[device] = others + needed

    def receipts(self) -> dict[int, Receipt]:
        """See `Destination.receipts`."""
        return self._claim.receipts()

    def trusts(self, unit: Unit, receipt: Receipt) -> bool:
        """See `Destination.trusts`: the bytes are read and hashed again."""
        path = self._folder / unit.shard
        if not path.exists():
            return False
        starts = [unit.start, *(node.slot.start for node in unit.nodes)]
        stops = [unit.nodes[0].slot.start, *(node.slot.stop for node in unit.nodes)]
        hashes = [receipt.head_sha256, *(tensor.sha256 for tensor in receipt.tensors)]
        with _reading(path):
            return len(hashes) == len(starts) and all(
                file_sha256(path, start, stop) == sha256
                for start, stop, sha256 in zip(starts, stops, hashes, strict=True)
            )

    def keep(self, receipt: Receipt) -> None:
        """See `Destination.keep`."""
        self._claim.keep(receipt)

    def read_figures(self, name: str) -> bytes | None:
        """See `Figures.read_figures`."""
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def keep_figures(self, name: str, content: bytes) -> None:
        """See `Figures.keep_figures`."""
        write_atomically(self._folder / name, content)

    def prepare(self, shard: Shard) -> None:
        """See `Destination.prepare`: the shard gets its full length and its header."""
        self._claim.check()
        with PosixShard(self._folder / shard.name, shard.nbytes) as file:
            file.write_at(shard.header, 0)

    def shard_sha256(self, shard: Shard, last: Receipt) -> str:
        """See `Destination.shard_sha256`: its only unit's, or read back."""
        path = self._folder / shard.name
        with _reading(path):
            with path.open("rb") as file:
                header = file.read(len(shard.header))
            if header != shard.header:
                raise CommitError(f"{path} does not begin with its planned header", file=shard.name)
            return last.shard_sha256 or self._hash_file(path, shard.nbytes)

    def publish(
        self, plan: Plan, receipts: Mapping[int, Receipt], files: Mapping[str, bytes]
    ) -> None:
        """See `Destination.publish`."""
        self._claim.publish(plan, receipts, files)

    def close(self) -> None:
        """See `Destination.close`."""
        self._claim.close()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of a shard that cannot be read back which it is."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read back: {error.strerror}", file=path.name
        ) from error
