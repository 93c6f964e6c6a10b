"""Proposers told what a formula says of their trials, in place of merges and evaluations."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

from raymerge.recipe.document import Fields, Node, read_documents
from raymerge.sweep.proposing import Proposer
from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.template import make_trial
from raymerge.sweep.trial import Trial, Value

Scores = Mapping[str, float] | None
"""By task; None for a trial that fails."""


def block(text: str) -> Fields:
    """A mapping of a recipe file named s.yaml."""
    [top] = read_documents(text, "s.yaml")
    return top


def under(text: str, key: str) -> Node:
    """What stands under a key of a recipe file named s.yaml."""
    return block(text).fields[key].node


def trial_of(values: Mapping[str, Value]) -> Trial:
    """A trial that is told from others by its values alone."""
    seed = zlib.crc32(repr(values).encode())
    text = f"merge_method: linear\nmodels: [a]\nparameters: {{weight: 1}}\nseed: {seed}"
    return make_trial(read_documents(text, "s.yaml"), "s.yaml", values, "out", stem=None)


def record_of(trial: Trial, scores: Scores, *, missed: Sequence[str] = ()) -> TrialRecord:
    """What a sweep would keep of a trial, ranked by the mean of its scores."""
    evaluated = Evaluated(
        trial=trial.name, split="search", subset=None, scores=scores or {}, seconds=0.1,
        error=None if scores else "ended with exit code 1", worker="here:1",
    )  # fmt: skip
    return TrialRecord(
        name=trial.name, digest="d", values=trial.values, seed=0, text=trial.text, out=trial.out,
        state="merged", error=None, seconds=0.1, bytes_read=1, bytes_written=1,
        evaluations=(evaluated,), missed=tuple(missed),
        score=sum(scores.values()) / len(scores) if scores else None,
    )  # fmt: skip


def rounds(
    proposer: Proposer, judge: Callable[[Trial], TrialRecord], most: int = 1000
) -> list[list[TrialRecord]]:
    """What a proposer asks for until it is done, or `most` rounds, as it is told."""
    found: list[list[TrialRecord]] = []
    while len(found) < most and (asked := proposer.ask()):
        found.append([judge(trial) for trial in asked])
        proposer.tell(found[-1])
    return found
