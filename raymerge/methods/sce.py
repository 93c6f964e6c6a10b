"""SCE: select where the models vary, calculate weights from energies, erase the minority.

Wan, Zhong, Yang, Chen, Quan. FuseChat: Knowledge Fusion of Chat Models. EMNLP 2025,
arXiv:2408.07990.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from raymerge.methods.free import Figures, FreeRule, Sweeps
from raymerge.methods.registry import Range, free_method


@dataclass(frozen=True, slots=True)
class Sce(FreeRule):
    """A histogram of the variance, the energies of what is selected, then the fuse."""

    kernel: ClassVar[str] = "sce"
    select_topk: float

    @property
    def passes(self) -> Mapping[str, str]:
        """See `FreeRule.passes`."""
        selection = {"histogram": "variance over the sources, which gives its threshold"}
        return {
            **(selection if self.selects else {}),
            "energies": "sum of squares of each task vector's selected entries: its weight",
            "sce": "select, elect, weighted mean, add to the base, cast",
        }

    @property
    def selects(self) -> bool:
        """See `FreeRule.selects`."""
        return 0 < self.select_topk < 1

    def figures(self, sweeps: Sweeps) -> Figures:
        """See `FreeRule.figures`."""
        selectors = sweeps.largest("spread", self.select_topk)
        # A copy: the count of ties seen has to start over in the last pass.
        energies = sweeps.sums("sce.energies", sweeps.sources, selectors.copy())
        return selectors, weights(energies).astype(np.float32)


def weights(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each source's share of the energy; equal ones where there is none, or a NaN or an Inf."""
    total = energies.sum()
    if total == 0 or not np.isfinite(total):
        return np.full(len(energies), 1 / len(energies))
    shares: npt.NDArray[np.float64] = energies / total
    return shares


@free_method("sce", paper="arXiv:2408.07990")
def sce(*, select_topk: Annotated[float, Range(0.0, 1.0)] = 1.0) -> Sce:
    """Fuse the entries in which the sources vary most, each source weighted by its energy.

    Select: of the n entries whose task vectors differ from source to source, the
    `int(select_topk * n)` of the largest variance stay, in all sources alike; the rest are the
    base's. Calculate: a source's weight is its share of the sum of squares of what stays. Erase: at
    every entry the sign with the greater total elects, and the result is the weighted mean of the
    task vectors that carry it. An entry of a task vector that is 0 carries no sign.

    Args:
        select_topk: Share of the entries with a variance that stays. At 1 everything stays, what
            all sources changed alike included; at 0 the base comes out, and so it does below 1 of
            a single source, which varies nowhere.

    The variance is float32 in recipe order, of deltas taken from the first source's: equal deltas
    have none. Of entries tied at the threshold an evenly spread set stays.

    Differs from the authors' code, as mergekit does: there the selection decides the weights alone,
    and entries that are not selected are fused too. Differs from mergekit: weights are equal only
    where the energies are all 0, there also where their mean squares sum to less than 1e-6, which
    drops the weighting of most fine-tunes without a word; and a sum of weights is divided by as it
    is, there by 1e-6 at least, which shrinks what only sources of little energy have.
    """
    return Sce(select_topk)
