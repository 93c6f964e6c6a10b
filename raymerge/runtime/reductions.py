"""Reductions that several merges of the same inputs ask for, each done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from raymerge.errors import NonFiniteError

T = TypeVar("T")


class Reductions:
    """What was found out about some inputs: asked for by several merges, worked out by one."""

    def __init__(self) -> None:
        self._found: dict[object, Any] = {}

    def once(self, key: object, reduce: Callable[[], T]) -> T:
        """The result of a reduction.

        Args:
            key: Equal only for reductions of equal results.
            reduce: Works it out, if nobody has.

        Raises:
            NonFiniteError: It met a NaN or an Inf, now or when it was first asked for.
        """
        if key not in self._found:
            try:
                self._found[key] = reduce()
            except NonFiniteError as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, NonFiniteError):
            raise found
        result: T = found
        return result
