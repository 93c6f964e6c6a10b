"""How work in progress ends before it is done."""

from __future__ import annotations

from raymerge.errors import RaymergeError


class StoppedError(RaymergeError):
    """The run was told to stop; what is finished stays finished."""
