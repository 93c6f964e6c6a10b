"""Merge the trials of a round: what the rest of a sweep asks of the machinery below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from raymerge.errors import RaymergeError
from raymerge.options import RunOptions
from raymerge.sweep.trial import Trial

if TYPE_CHECKING:
    from raymerge.runtime.driver import MergeResult
    from raymerge.runtime.settings import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial: a checkpoint, or the error that it alone ended with."""

    trial: Trial
    result: MergeResult | None
    error: RaymergeError | None


OnOutcome = Callable[[Outcome], None]


class Rounds:
    """Merges trials, round after round, with what one start has made ready.

    Args:
        options: See `RunOptions`.
        overwrite: Replace what the trials' destinations hold.
        on_progress: Told of bytes read and written, from any thread.
    """

    def __init__(
        self, options: RunOptions, *, overwrite: bool, on_progress: OnProgress = lambda _: None
    ) -> None:
        self._options = options
        self._overwrite = overwrite
        self._on_progress = on_progress

    def merge(self, trials: Sequence[Trial], on_outcome: OnOutcome) -> None:
        """Merge every trial into its place.

        Args:
            trials: In any order; no two of one name or one place.
            on_outcome: Told of each as soon as its checkpoint is whole, or it failed.

        Raises:
            SourceError: A source that trials share cannot be read: all of them end.
            ClusterError: There is nothing to run on.
        """
        from raymerge.api import merge

        for trial in trials:
            try:
                result = merge(
                    trial.recipe,
                    trial.out,
                    overwrite=self._overwrite,
                    on_progress=self._on_progress,
                    **self._options,
                )
            except RaymergeError as error:
                on_outcome(Outcome(trial=trial, result=None, error=error))
            else:
                on_outcome(Outcome(trial=trial, result=result, error=None))

    def close(self) -> None:
        """Let go of what the rounds shared."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
