"""What a search finds that a grid does not, at as many evaluations: on networks for digits.

    python -m bench.search [FOLDER]

Two specialists of one base, for turned and for mirrored digits, are merged. Scored is the mean of
both accuracies, on the 300 digits that trials are ranked by (`search`) and on 297 others (`final`).
Two problems: TIES by density, lambda and how much of each model; task arithmetic by layer. A grid
has one outcome, a search one a seed. Merges are rounds of a sweep; the evaluator is called here
rather than in a process of its own, which changes no score. FOLDER is best in memory.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import torch

from raymerge.sweep.proposing import Proposer
from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.rounds import Outcome, Rounds, record_of
from raymerge.sweep.template import read_template
from tests import digits
from tests.sweep.score_digits import Array, scores, weights_of

EVALUATIONS = 64
SEEDS = range(5)
SEARCHES = {
    "tpe": "search: {sampler: tpe, trials: 64, round: 8, seed: SEED}",
    "cmaes": "search: {sampler: cmaes, trials: 64, round: 8, seed: SEED}",
    "random": "sample: {n: 64, seed: SEED}",
}
TIES = """\
merge_method: ties
base_model: FOLDER/base
models:
  - { model: FOLDER/math, parameters: { weight: $share } }
  - { model: FOLDER/code, parameters: { weight: 1 - $share } }
parameters: { density: $density, lambda: $lambda }
"""
LAYERS = """\
merge_method: task_arithmetic
base_model: FOLDER/base
models:
  - { model: FOLDER/math, parameters: { weight: [$math_0, $math_1, $math_2] } }
  - { model: FOLDER/code, parameters: { weight: [$code_0, $code_1, $code_2] } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A recipe with axes, as a grid of 64 has them and as a search has them."""

    recipe: str
    grid: str
    ranges: str


PROBLEMS = {
    "ties, 3 axes": Problem(
        recipe=TIES,
        grid="{share: {linspace: [0.2, 0.8, 4]}, density: [0.1, 0.3, 0.6, 1.0],"
        " lambda: {linspace: [0.5, 2, 4]}}",
        ranges="{share: {uniform: [0.2, 0.8]}, density: {uniform: [0.1, 1.0]},"
        " lambda: {uniform: [0.5, 2]}}",
    ),
    "layers, 6 axes": Problem(
        recipe=LAYERS,
        grid="{"
        + ", ".join(f"{task}_{i}: [0.5, 1.0]" for task in ("math", "code") for i in range(3))
        + "}",
        ranges="{"
        + ", ".join(
            f"{task}_{i}: {{uniform: [0, 1.5]}}" for task in ("math", "code") for i in range(3)
        )
        + "}",
    ),
}
"""The grid's values are those that people try; its ends are no further out than the ranges'."""


class Bench:
    """Models, and the rounds that merge them, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._models, self._out = folder / "models", folder / "out"
        self._data = digits.digits()
        for name, network in digits.base_and_specialists(self._data).items():
            digits.write_network(self._models / name, network)

    def best(self, recipe: str, axes: str, how: str = "") -> dict[str, float]:
        """Scores, by split, of the trial that is best by those of `search`."""
        block = f"sweep:\n  axes: {axes}\n  evaluate: {{python: 'a:b'}}\n  {how}\n"
        text = recipe.replace("FOLDER", str(self._models)) + block
        template = read_template(text, "bench")
        assert template is not None
        found = self._run(template.proposer(str(self._out)))
        assert len(found) <= EVALUATIONS, len(found)
        return max(found, key=lambda scored: scored["search"])

    def _run(self, proposer: Proposer) -> list[dict[str, float]]:
        found = []
        with Rounds({"engine": "local", "device": "cpu"}, overwrite=True) as rounds:
            while trials := proposer.ask():
                outcomes: dict[str, Outcome] = {}
                rounds.merge(trials, lambda one: outcomes.update({one.trial.name: one}))  # noqa: B023
                told = []
                for trial in trials:
                    scored = self._score(Path(trial.out))
                    found.append(scored)
                    told.append(_told(outcomes[trial.name], scored["search"]))
                proposer.tell(told)
                shutil.rmtree(self._out)
        return found

    def _score(self, checkpoint: Path) -> dict[str, float]:
        weights = weights_of(checkpoint)
        return {split: _mean(weights, self._data, split) for split in ("search", "final")}


def _mean(weights: Mapping[str, Array], data: Mapping[str, Array], split: str) -> float:
    scored = scores(weights, data, split)
    return fmean(scored[task] for task in ("math", "code"))


def _told(outcome: Outcome, score: float) -> TrialRecord:
    trial = outcome.trial
    evaluated = Evaluated(
        trial=trial.name, split="search", subset=None, scores={"mean": score}, error=None,
        seconds=0.0, worker="here",
    )  # fmt: skip
    return replace(record_of(trial, outcome), evaluations=(evaluated,), score=score)


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    bench = Bench(folder)
    try:
        for name, problem in PROBLEMS.items():
            grid = bench.best(problem.recipe, problem.grid)
            _say(f"{name}: grid {grid['search']:.2f}, final {grid['final']:.2f}")
            for search, how in SEARCHES.items():
                found = [
                    bench.best(problem.recipe, problem.ranges, how.replace("SEED", str(seed)))
                    for seed in SEEDS
                ]
                each = " ".join(f"{one['search']:.2f}" for one in found)
                _say(
                    f"{name}: {search} {median(one['search'] for one in found):.2f} in the median"
                    f" of {each}, final {median(one['final'] for one in found):.2f}"
                )
    finally:
        shutil.rmtree(folder)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
