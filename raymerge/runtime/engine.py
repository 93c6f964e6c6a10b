"""What drives workers: the interface that the local engine and the Ray engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from raymerge.plan.graph import Unit

LOOK_S = 1.0
"""Between two looks whether a run that waits for its units still has a point."""

Call = Literal["merge", "count_high", "count_low", "count_ties"]
"""A method of `runtime.unit.Worker` that takes a unit first."""


class Engine(Protocol):
    """Workers that run units, in any order, each at least once, and report each once."""

    name: str
    workers: int
    """Processes, or for the local engine threads, that run units."""
    retries: int
    """Units that were run again because a worker was lost."""

    def run(
        self,
        call: Call,
        units: Sequence[Unit],
        *args: Any,
        before: Callable[[Unit], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Unit, Any]]:
        """Call every unit and yield results as they come.

        Args:
            call: Method of `Worker`.
            units: In the order to begin them.
            args: What the method takes besides the unit.
            before: Called once in this process before a unit is begun.
            meanwhile: Called every `LOOK_S` while none ends; what it raises ends the run.

        Raises:
            RaymergeError: A unit failed; what is under way is stopped first.
        """
        ...

    def close(self) -> None:
        """Stop the workers, the running ones too."""
        ...
