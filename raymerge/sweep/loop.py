"""A sweep from its proposer's first trials to the last decision.

ask -> a round of trials -> merged, evaluated -> tell -> ask ... -> decide
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raymerge.errors import RecipeError
from raymerge.machine import Machine
from raymerge.sweep.evaluation import Evaluating
from raymerge.sweep.judging import Judge
from raymerge.sweep.proposing import Proposer
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.trial import Trial


def run(proposer: Proposer, judge: Judge) -> list[TrialRecord]:
    """Run rounds until no trial is asked for; the records of all, in the order asked for.

    Args:
        proposer: Names the trials.
        judge: Merges and evaluates them.

    Raises:
        RaymergeError: What ends the whole sweep.
    """
    asked: dict[str, Trial] = {}
    while trials := proposer.ask():
        check_places(asked, trials)
        proposer.tell(judge.round(trials))
    return judge.finish()


def check_places(asked: dict[str, Trial], trials: Sequence[Trial]) -> None:
    """Add trials to those asked for before, if no two have one name or one place.

    Raises:
        RecipeError: Two have.
    """
    for what in ("name", "out"):
        first = {_key(trial, what): trial for trial in asked.values()}
        for trial in trials:
            twin = first.setdefault(_key(trial, what), trial)
            if twin.text != trial.text or twin.name != trial.name:
                raise RecipeError(
                    f"{trial.recipe.path}: {what} is {_key(trial, what)!r}, as it is of "
                    f"{twin.recipe.path} ({twin.name}); give each a place of its own with out:, "
                    "and each file once",
                    file=trial.recipe.path,
                )
    asked |= {trial.name: trial for trial in trials}


def _key(trial: Trial, what: str) -> str:
    return os.path.normpath(getattr(trial, what))


@contextmanager
def cluster_for(machine: Machine, evaluating: Evaluating) -> Iterator[None]:
    """One connection to Ray for merges and evaluations, which may outlast a merge's."""
    if machine.engine == "local" or evaluating.evaluator is None:
        yield
        return
    from raymerge.runtime import ray_cluster

    if ray_cluster.is_connected():
        yield
        return
    ray_cluster.connect(machine.address, workers=machine.processes)
    try:
        yield
    finally:
        ray_cluster.disconnect()
