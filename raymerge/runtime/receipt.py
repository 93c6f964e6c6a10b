"""What a worker gives back for a unit: proof that it was written, and figures for the ledger."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from raymerge.errors import CommitError

if TYPE_CHECKING:
    from raymerge.plan.graph import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReceipt:
    """An output tensor as it was written."""

    sha256: str
    seconds: float = field(compare=False)
    """From its first read to its last write, on one thread."""
    norms: tuple[float, ...] | None = None
    """Of each input, or of each task vector where the merge is relative to a base; with `--stats`.
    """
    cosines: tuple[float | None, ...] | None = None
    """Of every pair of them: of the first with each that follows, then of the second, and so on;
    None where one is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a unit was written, by hashes of its bytes."""

    unit: int
    shard: str
    start: int
    stop: int
    """Half-open range of the shard."""
    head_sha256: str
    """Of what stands before the unit's first tensor: the shard's header, or nothing."""
    tensors: tuple[TensorReceipt, ...]
    """In the order of the unit's nodes."""
    shard_sha256: str | None = None
    """Of the whole shard, where the unit is all of it."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """What the place knows the bytes by, such as an object's ETag."""
    worker: str = field(default="", compare=False)
    """Host and process that wrote it."""
    began: float = field(default=0.0, compare=False)
    """Seconds since 1970."""
    seconds: float = field(default=0.0, compare=False)

    def as_json(self) -> bytes:
        """The content of a receipt's file."""
        return json.dumps(asdict(self)).encode()


def check_complete(units: Collection[Unit], receipts: Collection[int]) -> None:
    """Refuse to publish where a unit was not written.

    Raises:
        CommitError: A unit has no receipt.
    """
    if missing := [unit.number for unit in units if unit.number not in receipts]:
        raise CommitError(f"{len(missing)} units have no receipt, number {missing[0]} first")


def read_receipt(raw: bytes) -> Receipt | None:
    """A receipt from its file; None from anything else: its unit counts as not written."""
    try:
        fields = json.loads(raw)
        tensors = tuple(map(_tensor, fields.pop("tensors")))
        return Receipt(**fields, tensors=tensors)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _tensor(fields: dict[str, Any]) -> TensorReceipt:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return TensorReceipt(**{**fields, **lists})
