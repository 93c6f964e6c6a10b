"""What a free method returns: a `FreeRule`, which says what is done to a tensor, sweep by sweep.

A rule is a frozen dataclass of its knobs. Its reductions are sweeps over the tensor's bytes, asked
for by the name of a kernel (`kernels/free.py`); what they find, its figures, goes into one last
pass, which writes:

    figures(sweeps)    sweeps.reduce("ram.count", ...)      a tile in, the figures updated
                       sweeps.sums("sce.energies", ...)     float64 sums in the contract's order
                       sweeps.largest("spread", ...)        what selects the largest values
                       sweeps.ranked("importance", ...)     values of given ranks, exactly
    kernel             the last pass, over the figures

The engine reads, cuts tiles, stays within the memory it planned for, and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from raymerge.kernels.tile import Figure, Selectors

Figures = tuple[Figure, ...]


class Sweeps(Protocol):
    """One tensor, base and sources, as a rule may look at it: a whole sweep at a time."""

    shape: tuple[int, ...]
    sources: int
    """Inputs besides the base."""

    def reduce(self, kernel: str, *figures: Figure) -> None:
        """Hand every tile in order to a reduction, which updates the figures."""

    def sums(self, kernel: str, number: int, *figures: Figure) -> npt.NDArray[np.float64]:
        """A reduction's sums, `(number,)`, whose state it takes after the figures."""

    def largest(self, values: str, share: float, *figures: Figure) -> Selectors:
        """One selector that keeps the `int(share * n)` largest of the n values that are not 0.

        `values` names two kernels, `<values>.high` and `<values>.low`, that count bits of values
        that are not negative. Ties are kept evenly spread. At a share of 1 everything is kept, the
        zeros too, and nothing is swept.
        """

    def ranked(
        self, values: str, ranks: Callable[[int], Sequence[int]], *figures: Figure
    ) -> list[np.float32]:
        """The values of the ranks, from 1 for the largest, that `ranks` gives for n entries."""


class FreeRule:
    """Base of what free methods return; a subclass is a frozen dataclass of plain knobs.

    A rule is part of the plan: it is pickled, and its `repr` is part of the digest.
    """

    __slots__ = ()
    kernel: ClassVar[str]
    """Name of the last pass."""

    @property
    def passes(self) -> Mapping[str, str]:
        """Every sweep in order, the last pass included: a short name, and what it does."""
        raise NotImplementedError

    @property
    def selects(self) -> bool:
        """Whether a sample is read to name the bin of a threshold."""
        return False

    def for_shape(self, shape: tuple[int, ...]) -> FreeRule:  # noqa: ARG002
        """The rule for tensors of this shape, itself unless other passes serve them better."""
        return self

    def figure_bytes(self, shape: tuple[int, ...], sources: int) -> int:  # noqa: ARG002
        """Upper bound of what its figures take for a tensor, counters of a selection aside."""
        return 0

    def figures(self, sweeps: Sweeps) -> Figures:
        """What the last pass takes after the tile, worked out by as many sweeps as it needs."""
        raise NotImplementedError
