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


def device_failure(error: MemoryError | RuntimeError) -> Exception:
    """What torch and numpy raise where the fault is not the unit's; any other as it is."""
    # By name: torch is not loaded for this, and before 2.8 its errors had no class of their own.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"}:
        return OutOfRoomError(f"not enough memory: {error}")
    if "AcceleratorError" in kinds or str(error).startswith("CUDA error"):
        return BrokenDeviceError(str(error))
    return error
