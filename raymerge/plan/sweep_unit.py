"""A unit of several trials: one run of tensors, whose sources are read once for all of them."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from raymerge.plan.graph import TensorNode, Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepUnit:
    """The same range of the same shard of each trial. Their units are equal but for the steps."""

    number: int
    """That of each trial's own unit."""
    trials: tuple[int, ...]
    """Positions in `RunSettings.trials`."""
    units: tuple[Unit, ...]
    """One per trial. What they share is one object, also on a worker that they are sent to."""

    @property
    def shard(self) -> str:
        """The shard that each writes to."""
        return self.units[0].shard

    @property
    def nodes(self) -> tuple[TensorNode, ...]:
        """The first trial's."""
        return self.units[0].nodes if self.units else ()

    @property
    def nbytes(self) -> int:
        """What is written for all trials."""
        return sum(unit.nbytes for unit in self.units)

    def without(self, trials: Collection[int]) -> SweepUnit:
        """What is left of it for the other trials, maybe nothing."""
        left = [
            (trial, unit)
            for trial, unit in zip(self.trials, self.units, strict=True)
            if trial not in trials
        ]
        return SweepUnit(
            number=self.number,
            trials=tuple(trial for trial, _ in left),
            units=tuple(unit for _, unit in left),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Nodes of many trials are alike: deflated, ten of them travel as one.
        fields = pickle.dumps((self.number, self.trials, self.units), pickle.HIGHEST_PROTOCOL)
        return _inflated, (zlib.compress(fields, 1),)


def _inflated(deflated: bytes) -> SweepUnit:
    fields = pickle.loads(zlib.decompress(deflated))  # noqa: S301 - from our own driver
    number, trials, units = fields
    return SweepUnit(number=number, trials=trials, units=units)
