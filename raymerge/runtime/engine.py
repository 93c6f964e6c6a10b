"""What drives workers: the interface that the local engine and the Ray engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol, TypeVar

from raymerge.plan.graph import Unit
from raymerge.plan.sweep_unit import SweepUnit

LOOK_S = 1.0
"""Between two looks whether a run that waits for its units still has a point."""

Call = Literal["merge", "merge_trials", "count_high", "count_low", "count_ties"]
"""A method of `runtime.unit.Worker` that takes a unit first."""


WorkUnit = TypeVar("WorkUnit", Unit, SweepUnit)
"""What a call takes: a plan's unit, or that of several trials."""


class Engine(Protocol):
    """Workers that run units, in any order, each at least once, and report each.

    Where a unit that is merged was written twice it is reported twice, the later last.
    """

    name: str

    @property
    def workers(self) -> int:
        """Processes, or for the local engine threads, that run units."""
        ...

    @property
    def lost_workers(self) -> int:
        """Workers that were lost, whose units others have run."""
        ...

    @property
    def redone_units(self) -> int:
        """Units that were begun again, because a worker was lost or took too long over them."""
        ...

    def run(
        self,
        call: Call,
        units: Sequence[WorkUnit],
        *args: Any,
        before: Callable[[WorkUnit], WorkUnit | None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """Call every unit and yield results as they come.

        Args:
            call: Method of `Worker`.
            units: In the order to begin them.
            args: What the method takes besides the unit.
            before: Called once in this process before a unit is begun; a unit that it returns is
                run in its place.
            meanwhile: Called every `LOOK_S` while none ends; what it raises ends the run.

        Raises:
            RaymergeError: A unit failed; what is under way is stopped first.
        """
        ...

    def close(self) -> None:
        """Stop the workers, the running ones too."""
        ...
