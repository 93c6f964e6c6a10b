"""What a search finds that a grid does not, at as many evaluations: on networks for digits.

    python -m bench.search [FOLDER]

The specialists of `recipes/sweeps/digits.py` are merged. Scored is the mean of their accuracies, on
the 399 digits that trials are ranked by (`search`) and on 398 others (`final`). Two problems: TIES
by density, lambda and one weight; task arithmetic by layer. A grid has one outcome, a search one a
seed. Merges are rounds of a sweep; the evaluator is called here rather than in a process of its
own, which changes no score. FOLDER is best in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from raymerge.sweep.proposing import Proposer
from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.rounds import Outcome, Rounds, record_of
from raymerge.sweep.template import read_template
from recipes.sweeps import digits

EVALUATIONS = 64
SEEDS = range(5)
OUT = "out"
SEARCHES = {
    "tpe": "search: {sampler: tpe, trials: 64, round: 8, seed: SEED}",
    "cmaes": "search: {sampler: cmaes, trials: 64, round: 8, seed: SEED}",
    "random": "sample: {n: 64, seed: SEED}",
}
TASKS = tuple(digits.TASKS)
TIES = """\
merge_method: ties
base_model: models/base
models:
  - { model: models/turned, parameters: { weight: $turned } }
  - { model: models/mirrored, parameters: { weight: 1 } }
  - { model: models/inverted, parameters: { weight: 1 } }
parameters: { density: $density, lambda: $lambda }
"""
LAYERS = "merge_method: task_arithmetic\nbase_model: models/base\nmodels:\n" + "".join(
    f"  - model: models/{task}\n"
    "    parameters:\n"
    f"      weight: [{{ filter: hidden, value: ${task}_0 }}, {{ value: ${task}_1 }}]\n"
    for task in TASKS
)
LAYER_AXES = [f"{task}_{layer}" for task in TASKS for layer in (0, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A recipe with axes, as a grid of 64 has them and as a search has them."""

    recipe: str
    grid: Mapping[str, object]
    ranges: Mapping[str, object]


PROBLEMS = {
    "ties, 3 axes": Problem(
        recipe=TIES,
        grid={
            "turned": [0.5, 1.0, 1.5, 2.0],
            "density": [0.1, 0.3, 0.6, 1.0],
            "lambda": [0.5, 1.0, 1.5, 2.0],
        },
        ranges={
            "turned": {"uniform": [0.5, 2]},
            "density": {"uniform": [0.1, 1]},
            "lambda": {"uniform": [0.5, 2]},
        },
    ),
    "layers, 6 axes": Problem(
        recipe=LAYERS,
        grid={axis: [0.5, 1.0] for axis in LAYER_AXES},
        ranges={axis: {"uniform": [0, 1.5]} for axis in LAYER_AXES},
    ),
}
"""The grid's values are those that people try; its ends are no further out than the ranges'."""


def best(problem: Problem, axes: Mapping[str, object], how: str = "") -> dict[str, float]:
    """Scores, by split, of the trial that is best by those of `search`."""
    block = f"sweep:\n  axes: {json.dumps(axes)}\n  evaluate: {{python: 'a:b'}}\n  {how}\n"
    template = read_template(problem.recipe + block, "bench")
    assert template is not None
    found = _run(template.proposer(OUT))
    assert len(found) <= EVALUATIONS, len(found)
    return max(found, key=lambda scored: scored["search"])


def _run(proposer: Proposer) -> list[dict[str, float]]:
    found = []
    rounds = Rounds({"engine": "local", "device": "cpu"}, overwrite=True)
    while trials := proposer.ask():
        outcomes: list[Outcome] = []
        rounds.merge(trials, outcomes.append)
        told = {}
        for outcome in outcomes:
            trial = outcome.trial
            found.append({split: _mean(trial.out, split) for split in ("search", "final")})
            told[trial.name] = _told(outcome, found[-1]["search"])
        proposer.tell([told[trial.name] for trial in trials])
        shutil.rmtree(OUT)
    return found


def _mean(checkpoint: str, split: str) -> float:
    return fmean(digits.score(checkpoint, split=split, subset=None).values())


def _told(outcome: Outcome, score: float) -> TrialRecord:
    trial = outcome.trial
    evaluated = Evaluated(
        trial=trial.name, split="search", subset=None, scores={"mean": score}, error=None,
        seconds=0.0, worker="here",
    )  # fmt: skip
    return replace(record_of(trial, outcome), evaluations=(evaluated,), score=score)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        os.chdir(folder)
        digits.make(Path("models"))
        for name, problem in PROBLEMS.items():
            grid = best(problem, problem.grid)
            _say(f"{name}: grid {grid['search']:.2f}, final {grid['final']:.2f}")
            for search, how in SEARCHES.items():
                found = [
                    best(problem, problem.ranges, how.replace("SEED", str(seed))) for seed in SEEDS
                ]
                each = " ".join(f"{one['search']:.2f}" for one in found)
                _say(
                    f"{name}: {search} {median(one['search'] for one in found):.2f} in the median"
                    f" of {each}, final {median(one['final'] for one in found):.2f}"
                )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
