"""Which trials a sweep merges next, given what came of those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raymerge.sweep.record import TrialRecord
from raymerge.sweep.trial import Trial


class Proposer(Protocol):
    """Names the trials of a sweep, round after round.

    The same proposer, told the same, asks for the same trials: a sweep that was killed asks again,
    and is told at once what its ledger has.
    """

    def ask(self) -> Sequence[Trial]:
        """The next round; none once the sweep is over."""
        ...

    def tell(self, records: Sequence[TrialRecord]) -> None:
        """Take in what came of the round asked for, evaluated, in its order."""
        ...

    def tie_break(self, record: TrialRecord) -> int:
        """Of trials with equal scores the one comes first for which this is least."""
        ...


class OneRound:
    """All trials at once: a grid, a sample, a list of recipes."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._left = tuple(trials)

    def ask(self) -> Sequence[Trial]:
        """All of them; none the second time."""
        asked, self._left = self._left, ()
        return asked

    def tell(self, records: Sequence[TrialRecord]) -> None:
        """Nothing depends on them."""

    def tie_break(self, record: TrialRecord) -> int:
        """They stay in order."""
        del record
        return 0
