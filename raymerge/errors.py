"""What can go wrong, grouped by what a caller does about it.

    RaymergeError
      RecipeError (ValueError)      fix the recipe: file, line, key                     exit 2
      PlanError (ValueError)        does not match or does not fit: names and numbers   exit 2
      ConflictError                 another recipe or driver holds OUT                  exit 2
      SourceError (OSError)         missing, changed since planning, malformed          exit 3
      StorageError (OSError)        destination or transport; `retryable` says which    exit 3
      NonFiniteError (ValueError)   NaN or Inf in a source or a result                  exit 1
      ClusterError                  no workers, lost driver, version skew; `retryable`  exit 1
      CommitError                   receipts and plan disagree; nothing was published   exit 1
      VerifyError                   a checkpoint contradicts itself                     exit 5

Every class survives `pickle`, because Ray ships exceptions between processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


class RaymergeError(Exception):
    """Base of everything raymerge raises on purpose.

    Args:
        message: What was found, what was expected, what to do.
        source: Label or location of the source concerned.
        tensor: Name of the tensor concerned.
        file: File or object concerned.
        retryable: Whether the same call may succeed later.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        tensor: str | None = None,
        file: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.tensor = tensor
        self.file = file
        self.retryable = retryable

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Callable[..., RaymergeError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The fields of the command line's `{"error": ...}` document."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "source": self.source,
            "tensor": self.tensor,
            "file": self.file,
            "retryable": self.retryable,
        }


def _rebuild(kind: type[RaymergeError], fields: dict[str, Any]) -> RaymergeError:
    named = {key: value for key, value in fields.items() if key not in {"type", "message"}}
    return kind(fields["message"], **named)


class RecipeError(RaymergeError, ValueError):
    """The recipe is wrong: file, line and key are in the message."""

    exit_code = 2


class PlanError(RaymergeError, ValueError):
    """Recipe and sources do not match, or the merge does not fit the budget."""

    exit_code = 2


class ConflictError(RaymergeError):
    """Another recipe or another driver holds the destination."""

    exit_code = 2


class SourceError(RaymergeError, OSError):
    """A source is missing, malformed, or changed since it was planned."""

    exit_code = 3


class StorageError(RaymergeError, OSError):
    """A destination or a transport failed."""

    exit_code = 3


class NonFiniteError(RaymergeError, ValueError):
    """NaN or Inf in a source, or a finite value that left the output dtype's range."""

    exit_code = 1


class ClusterError(RaymergeError):
    """Workers, driver or versions: the cluster could not do its part."""

    exit_code = 1


class CommitError(RaymergeError):
    """Receipts and plan disagree. Nothing was published."""

    exit_code = 1


class VerifyError(RaymergeError):
    """A checkpoint contradicts itself."""

    exit_code = 5
