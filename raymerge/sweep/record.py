"""What a sweep knows of its trials: the rows of its ledger, and what choice and report work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from raymerge.sweep.trial import Value

Split = Literal["search", "final"]
"""The examples that choose, or those kept for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation of one checkpoint."""

    trial: str
    """Name of the trial; of a source that gates compare with, `source:` and its label."""
    split: Split
    subset: int | None
    """How many of the examples; None for all."""
    scores: Mapping[str, float]
    """By task, higher is better; empty where it gave none."""
    error: str | None
    """Why it gave none, or not those that were asked for."""
    seconds: float
    worker: str
    """Host and process that ran it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial, as far as it has come."""

    name: str
    digest: str
    """Of its plan; empty where it could not be planned."""
    values: Mapping[str, Value]
    seed: int
    text: str
    """The YAML that makes it alone."""
    out: str
    state: Literal["merged", "failed", "kept", "removed"]
    """`merged`: there, not chosen; `kept` and `removed`: by choice; `failed`: it was not merged, or
    its evaluation failed."""
    error: str | None
    """Why it failed; of a kept one, why its evaluation for the report did."""
    seconds: float
    bytes_read: int
    """The sources' bytes that its round has read, shared evenly by the trials of it."""
    bytes_written: int
    evaluations: tuple[Evaluated, ...]
    """The newest of each split and subset."""
    missed: tuple[str, ...]
    """Gates that it does not clear, each in words; empty also where nothing was evaluated."""
    score: float | None
    """What it is ranked by, over the largest subset that it was evaluated on; None without one.
    Where fronts rank: 0 on the first, -1 on the second, and so on."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What its sources were, by location: equal as long as their files stay the same."""
    rank: int | None = None
    """Among all trials of the sweep, 1 for the best. None where it failed or nothing is decided."""

    def shown(self, split: Split) -> Evaluated | None:
        """Its evaluation on the most examples of a split, of those that gave scores."""
        good = [one for one in self.evaluations if one.split == split and one.scores]
        return max(good, key=lambda one: inf if one.subset is None else one.subset, default=None)
