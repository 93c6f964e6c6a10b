"""What happens to a unit or a worker that is not the run's end."""

from __future__ import annotations

from raymerge.errors import ClusterError, RaymergeError
from raymerge.runtime.schedule import Loss


class OutOfRoomError(RaymergeError):
    """Memory of the device or of the process did not suffice for a unit."""


class BrokenDeviceError(RaymergeError):
    """The device fails, whatever it is given."""


class WorkerLostError(ClusterError):
    """A worker is no more.

    Args:
        message: What Ray says of it.
        why: What that means.
    """

    def __init__(self, message: str, why: Loss) -> None:
        super().__init__(message, retryable=True)
        self.why = why
