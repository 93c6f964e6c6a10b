"""NearSwap: move entries towards another model where the two are near already.

alchemonaut. QuartetAnemoi-70B-t0.0001, model card, huggingface.co/alchemonaut. No paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raymerge.methods.free import Figures, FreeRule, Sweeps
from raymerge.methods.registry import NotNegative, free_method


@dataclass(frozen=True, slots=True)
class NearSwap(FreeRule):
    """One pass, entry by entry."""

    kernel: ClassVar[str] = "nearswap"
    t: float

    @property
    def passes(self) -> Mapping[str, str]:
        """See `FreeRule.passes`."""
        return {"nearswap": "blend by distance, cast"}

    def figures(self, sweeps: Sweeps) -> Figures:  # noqa: ARG002 - nothing to find out
        """See `FreeRule.figures`."""
        return (np.float32(self.t),)


@free_method("nearswap", paper="QuartetAnemoi-70B, mergekit", min_sources=1, max_sources=1)
def nearswap(*, t: NotNegative) -> NearSwap:
    """Swap what differs by at most `t` for the source's, and move the rest the less the further.

    With base b and source x: `w x + (1 - w) b`, `w = min(1, t / |b - x|)`. An entry further away
    than `t` moves by about `t`. Distances below 1e-6 count as 1e-6, as in mergekit.

    Args:
        t: Distance up to which an entry becomes the source's. At 0 the base comes out.

    Differs from mergekit: a negative `t` is refused; there it gives the base.
    """
    return NearSwap(t)
