"""RAM+ with factors per tensor: RAM that makes up for what averaging took from a source.

Yuan, Shi, Zhang, Liu, Yao, Vosoughi, Lee. Behavior Knowledge Merge in Reinforced Agentic Models.
2026, arXiv:2601.13572. "tl", tensor-local, is mergekit's variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raymerge.methods.free import Figures, FreeRule, Sweeps
from raymerge.methods.registry import NotNegative, free_method


@dataclass(frozen=True, slots=True)
class RamPlus(FreeRule):
    """A count of shared and lone entries of each source, then RAM's pass."""

    kernel: ClassVar[str] = "ram"
    r: float
    alpha: float
    epsilon: float

    @property
    def passes(self) -> Mapping[str, str]:
        """See `FreeRule.passes`."""
        return {
            "count": "entries active in several sources and in one, which give its factor",
            "ram": "mean of the active deltas, a lone one times its factor, add to the base, cast",
        }

    def figures(self, sweeps: Sweeps) -> Figures:
        """See `FreeRule.figures`."""
        epsilon = np.float32(self.epsilon)
        counts = np.zeros((sweeps.sources, 2), np.int64)
        sweeps.reduce("ram.count", epsilon, counts)
        factors = [self.factor(int(shared), int(alone)) for shared, alone in counts]
        return epsilon, np.array(factors, np.float32)

    def factor(self, shared: int, alone: int) -> float:
        """What a source's lone entries are multiplied by, from its numbers of entries."""
        divisor = max(alone, self.epsilon)
        # Without lone entries there is nothing to multiply.
        return 1 + self.r * min(shared / divisor, self.alpha) if divisor else 1.0


@free_method("ramplus_tl", paper="arXiv:2601.13572")
def ramplus_tl(*, r: float = 0.1, alpha: NotNegative = 0.2, epsilon: NotNegative = 1e-5) -> RamPlus:
    """Average shared changes as `ram` does, and scale up what one source alone has changed.

    A source's lone entries are multiplied by `1 + r * min(alpha, shared / alone)`, where `shared`
    and `alone` are its numbers of active entries that others have too and that it alone has, in
    this tensor: the more of a source is averaged away, the more the rest of it counts.

    Args:
        r: Strength of the scaling. At 0 this is `ram`.
        alpha: Limit of the ratio.
        epsilon: What a change has to exceed to count.

    Differs from the paper: the ratio is each tensor's own, as in mergekit, not the model's. Differs
    from mergekit: the output has the dtype asked for; there it is float32 whatever the sources are.
    """
    return RamPlus(r=r, alpha=alpha, epsilon=epsilon)
