"""A sweep from its proposer's first trials to the last decision.

ask -> a round of trials -> merged, evaluated -> tell -> ask ... -> decide
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from raymerge.errors import RecipeError
from raymerge.machine import Machine
from raymerge.sweep.evaluation import Evaluating, Pool
from raymerge.sweep.evaluation.ready import check_installed, check_ready, slots_here
from raymerge.sweep.judging import Judge
from raymerge.sweep.proposing import Proposer
from raymerge.sweep.record import Evaluated, TrialRecord
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
    names = {trial.name: trial for trial in asked.values()}
    places = {os.path.normpath(trial.out): trial for trial in asked.values()}
    for trial in trials:
        for what, key, first in (
            ("name", trial.name, names),
            ("out", os.path.normpath(trial.out), places),
        ):
            twin = first.setdefault(key, trial)
            if (twin.name, twin.text) != (trial.name, trial.text):
                raise RecipeError(
                    f"{trial.recipe.path}: {what} is {key!r}, as it is of {twin.recipe.path} "
                    f"({twin.name}); give each a place of its own with out:, and each file once",
                    file=trial.recipe.path,
                )
    asked |= {trial.name: trial for trial in trials}


@contextmanager
def joined(machine: Machine, evaluating: Evaluating) -> Iterator[Callable[[], None]]:
    """One connection to a cluster for all merges and evaluations of a sweep.

    Gives what makes it: a cluster of our own is started once, and only if something is to be
    merged. One that evaluates too is joined at once.
    """
    connected_here = False

    def join() -> None:
        nonlocal connected_here
        if machine.engine == "local":
            return
        from raymerge.runtime import ray_cluster

        if not ray_cluster.is_connected():
            ray_cluster.connect(machine.address, workers=machine.processes)
            connected_here = True

    if machine.address is not None and evaluating.evaluator is not None:
        join()
    try:
        yield join
    finally:
        if connected_here:
            from raymerge.runtime import ray_cluster

            ray_cluster.disconnect()


def pool_of(
    evaluating: Evaluating, machine: Machine, on_evaluated: Callable[[Evaluated], None]
) -> Pool:
    """What evaluates: on the cluster that merges, else here, as many at once as it has room for.

    Args:
        evaluating: How.
        machine: What merges.
        on_evaluated: Told of each evaluation as it ends.

    Raises:
        PlanError: What evaluates is not there, or this machine has no room for one.
    """
    # A Ray of our own may not have started yet, and has nothing but this machine.
    if machine.address is None:
        check_ready(evaluating)
        return Pool(evaluating, slots_here(evaluating), on_evaluated=on_evaluated, here=True)
    check_installed(evaluating)
    return Pool(evaluating, on_evaluated=on_evaluated)
