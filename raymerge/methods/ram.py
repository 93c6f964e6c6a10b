"""RAM: average the changes that fine-tunes share, keep whole what one alone has changed.

Yuan, Shi, Zhang, Liu, Yao, Vosoughi, Lee. Behavior Knowledge Merge in Reinforced Agentic Models.
2026, arXiv:2601.13572.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raymerge.methods.free import Figures, FreeRule, Sweeps
from raymerge.methods.registry import NotNegative, free_method


@dataclass(frozen=True, slots=True)
class Ram(FreeRule):
    """One pass, entry by entry."""

    kernel: ClassVar[str] = "ram"
    epsilon: float

    @property
    def passes(self) -> Mapping[str, str]:
        """See `FreeRule.passes`."""
        return {"ram": "mean of the active deltas, add to the base, cast"}

    def figures(self, sweeps: Sweeps) -> Figures:
        """See `FreeRule.figures`: a lone delta's factor is 1."""
        return np.float32(self.epsilon), np.ones(sweeps.sources, np.float32)


@free_method("ram", paper="arXiv:2601.13572")
def ram(*, epsilon: NotNegative = 1e-5) -> Ram:
    """Add to the base, entry by entry, the mean of the task vectors that changed it.

    A task vector is active where its magnitude exceeds `epsilon`; only active ones count, so that
    what a single source has learnt is not diluted by the others, which left the entry alone.

    Args:
        epsilon: What a change has to exceed to count. In bfloat16 the smallest change of an entry
            above 0.003 is larger than the default.

    Differs from mergekit: the mean is the float32 sum, in recipe order, divided once.
    """
    return Ram(epsilon)
