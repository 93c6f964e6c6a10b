"""`search:` of a sweep block: points chosen by what earlier ones scored, by Optuna.

    search: {sampler: cmaes, trials: 64, round: 8, seed: 0}

tpe     a model of what good points have in common; any axes, one task or several
cmaes   a Gaussian that moves and stretches to where scores rise; two or more axes of numbers, one
        score. It begins in the middle, with a sixth of each range
nsga2   a population that is crossed and mutated; any axes, meant for several tasks
gp      a Gaussian process; any axes, for few and costly trials

The points of a round are chosen before any of them is scored, so that they are merged with one read
of their sources. `cmaes` and `nsga2` take a round for their population.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from raymerge.errors import PlanError
from raymerge.recipe.document import Fields, Node, Place
from raymerge.recipe.wording import did_you_mean, listed
from raymerge.sweep.axes import MAX_TRIALS, Axis, Choices
from raymerge.sweep.choice import newest
from raymerge.sweep.evaluation.model import By, Pareto
from raymerge.sweep.evaluation.values import mapping, number
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.trial import Trial, Value

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "cmaes", "nsga2", "gp"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
NUM_SEEDS = 2**32
"""numpy's, with which the samplers draw."""
INSTALL = 'pip install "raymerge[search]"'
_ROUND = 8
_POPULATION = 16
"""A round of nsga2: fewer make no front."""
_LEAST_POPULATION = 4
_START = 8
"""Points that tpe and gp draw at random before they have a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How points are searched."""

    sampler: Sampler
    trials: int
    """Points in all; one that comes up again counts, and is not merged again."""
    round: int
    """Points chosen at once."""
    seed: int


def read_search(node: Node, axes: Mapping[str, Axis], by: By) -> Search:
    """The search that a block asks for.

    Args:
        node: Under `search`.
        axes: Of the block.
        by: What trials are ranked by.

    Raises:
        RecipeError: A key is wrong, or the sampler cannot search these axes or this ranking.
    """
    fields = mapping(node, "search", "{sampler: tpe, trials: 64}")
    fields.check_keys("search", ("sampler", "trials", "round", "seed"))
    sampler = _sampler(fields)
    if sampler == "cmaes":
        _check_cmaes(fields.place_of("sampler"), axes, by)
    trials = _whole(fields, "trials", least=1, most=MAX_TRIALS)
    if trials is None:
        raise fields.place.error("trials: missing; write how many points to try, trials: 64")
    population = sampler in {"cmaes", "nsga2"}
    least = _LEAST_POPULATION if population else 1
    size = _whole(fields, "round", least=least, most=MAX_TRIALS)
    return Search(
        sampler=sampler,
        trials=trials,
        round=size or _round(sampler, len(axes)),
        seed=_whole(fields, "seed", least=0, most=NUM_SEEDS - 1) or 0,
    )


def _sampler(fields: Fields) -> Sampler:
    node = fields.get("sampler")
    name = "tpe" if node is None else node.as_text("sampler")
    if name in SAMPLERS:
        return name
    hint = did_you_mean(name, SAMPLERS)
    raise fields.place_of("sampler").error(
        f"sampler is {name!r}; allowed: {listed(SAMPLERS)}.{hint}"
    )


def _check_cmaes(place: Place, axes: Mapping[str, Axis], by: By) -> None:
    words = [name for name, axis in axes.items() if isinstance(axis, Choices)]
    if words:
        raise place.error(
            f"sampler: cmaes moves through numbers, and {words[0]} is a list; give it as uniform, "
            "log_uniform or int, or take tpe"
        )
    if len(axes) < 2:  # noqa: PLR2004 - Optuna's rule
        raise place.error("sampler: cmaes needs two axes or more; take tpe or gp for one")
    if isinstance(by, Pareto):
        raise place.error("sampler: cmaes has no fronts; take nsga2 or tpe for by: {pareto: ...}")


def _whole(fields: Fields, key: str, *, least: int, most: int) -> int | None:
    def fits(value: float) -> bool:
        return least <= value <= most and value.is_integer()

    found = number(fields, key, fits, f"a whole number, {least} to {most}")
    return None if found is None else int(found)


def _round(sampler: Sampler, num_axes: int) -> int:
    if sampler == "cmaes":
        return 4 + int(3 * math.log(num_axes))
    return _POPULATION if sampler == "nsga2" else _ROUND


def check_installed(search: Search) -> None:
    """Raise PlanError, before anything is merged, if what searches is not installed."""
    needed = ["optuna", *(["cmaes"] if search.sampler == "cmaes" else [])]
    needed += ["scipy"] if search.sampler == "gp" else []
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise PlanError(
            f"search: {search.sampler} needs {' and '.join(missing)}, not installed; install with: "
            f"{INSTALL}"
        )


class Searching:
    """Proposes points by a sampler of Optuna, a round at a time.

    A trial that failed is told as failed, one stopped on a subset of the examples as pruned, with
    what it scored there. Gates are constraints to tpe, nsga2 and gp: a point is worse the more of
    them it misses, and any that misses none is better. cmaes knows none and goes by scores alone.

    Args:
        search: Which sampler, how many points.
        axes: What they are chosen from.
        make: A trial of a point.
        by: What trials are ranked by.
        gated: Whether trials may miss a gate.

    Raises:
        PlanError: What searches is not installed.
    """

    def __init__(
        self,
        search: Search,
        axes: Mapping[str, Axis],
        make: Callable[[Mapping[str, Value]], Trial],
        *,
        by: By,
        gated: bool,
    ) -> None:
        check_installed(search)
        self._axes = axes
        self._make = make
        self._tasks = by.tasks if isinstance(by, Pareto) else None
        self._gated = gated
        self._round = search.round
        self._left = search.trials
        self._space = {name: _distribution(axis) for name, axis in axes.items()}
        self.study = _study(search, self._space, len(self._tasks or ("score",)))
        self._asked: list[tuple[optuna.trial.Trial, Trial]] = []
        self._known: dict[str, TrialRecord] = {}

    def ask(self) -> Sequence[Trial]:
        """The trials of the next points; none once all points are spent."""
        while self._left:
            points = [self.study.ask(self._space) for _ in range(min(self._round, self._left))]
            self._left -= len(points)
            self._asked = [(point, self._make(self._values(point.params))) for point in points]
            new = {trial.name: trial for _, trial in self._asked if trial.name not in self._known}
            if new:
                return tuple(new.values())
            self._tell_points()
        return ()

    def tell(self, records: Sequence[TrialRecord]) -> None:
        """Take in what the points came to."""
        self._known |= {record.name: record for record in records}
        self._tell_points()

    def tie_break(self, record: TrialRecord) -> int:
        """They stay in order."""
        del record
        return 0

    def _values(self, params: Mapping[str, Any]) -> dict[str, Value]:
        return {
            name: axis.values[params[name]] if isinstance(axis, Choices) else params[name]
            for name, axis in self._axes.items()
        }

    def _tell_points(self) -> None:
        for point, trial in self._asked:
            self._tell_point(point, self._known[trial.name])
        self._asked = []

    def _tell_point(self, point: optuna.trial.Trial, record: TrialRecord) -> None:
        from optuna.trial import TrialState

        whole = newest(record, "search", None)
        if record.score is None:
            self.study.tell(point, state=TrialState.FAIL)
        elif whole is None:
            if self._tasks is None:
                point.report(record.score, max(each.subset or 0 for each in record.evaluations))
            self.study.tell(point, state=TrialState.PRUNED)
        else:
            if self._gated:
                point.set_constraint("gates", float(len(record.missed)))
            objectives = [whole.scores[task] for task in self._tasks or ()]
            self.study.tell(point, objectives or record.score)


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(axis, Choices):
        # By position: of 1 and true, which are equal, Optuna would find the first.
        return CategoricalDistribution(range(len(axis.values)))
    if axis.kind == "int":
        return IntDistribution(int(axis.lower), int(axis.upper))
    return FloatDistribution(axis.lower, axis.upper, log=axis.kind == "log_uniform")


def _study(
    search: Search, space: Mapping[str, optuna.distributions.BaseDistribution], objectives: int
) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        sampler=_SAMPLERS[search.sampler](search, space), directions=["maximize"] * objectives
    )


def _tpe(search: Search, _space: object) -> optuna.samplers.BaseSampler:
    from optuna.samplers import TPESampler

    return TPESampler(seed=search.seed, n_startup_trials=_START)


def _cmaes(
    search: Search, space: Mapping[str, optuna.distributions.BaseDistribution]
) -> optuna.samplers.BaseSampler:
    import optuna

    class FromTheStart(optuna.samplers.CmaEsSampler):
        """Optuna's takes the axes from finished trials, and draws its first round at random."""

        def infer_relative_search_space(
            self, study: optuna.Study, trial: optuna.trial.FrozenTrial
        ) -> dict[str, optuna.distributions.BaseDistribution]:
            del study, trial
            return dict(space)

    return FromTheStart(
        seed=search.seed,
        n_startup_trials=0,
        popsize=search.round,
        warn_independent_sampling=False,
    )


def _nsga2(search: Search, _space: object) -> optuna.samplers.BaseSampler:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=search.seed, population_size=search.round)


def _gp(search: Search, _space: object) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GPSampler

    return GPSampler(seed=search.seed, n_startup_trials=_START, warn_independent_sampling=False)


_SAMPLERS: Mapping[Sampler, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "cmaes": _cmaes,
    "nsga2": _nsga2,
    "gp": _gp,
}
