"""`greedy_soup:` of a sweep block: average the ingredients that help.

    greedy_soup: {models: [models/run-1, models/run-2, models/run-3]}

Recipe 1 of Wortsman et al.: evaluate every ingredient, go through them from the best down, and keep
each that leaves the average of those kept no worse. A ready sweep: its first round is the
ingredients, each a trial merged by linear alone, all in one read; every later round is one trial.

Ingredients are trials, and not evaluated where they lie, so that all scores come from checkpoints
written alike (dtype, adapters, places the evaluator can open), and a soup of one is there to keep.
That costs a write each, to `scratch` where there is one, and no read more.

Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon, Kornblith,
Schmidt. Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time. ICML 2022, arXiv:2203.05482.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raymerge.recipe.document import Fields, Items, Node, Scalar
from raymerge.sweep.evaluation.model import By, Pareto
from raymerge.sweep.evaluation.values import mapping
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.trees import keyed, refuse, word
from raymerge.sweep.trial import Trial

OWN_KEYS = ("models", "base_model", "slices", "modules")
"""Keys of a recipe that the block decides."""


def read_soup(node: Node, top: Fields, by: By) -> Fields:
    """The recipe of the soup of all ingredients.

    Args:
        node: Under `greedy_soup`.
        top: The recipe's other keys.
        by: What trials are ranked by.

    Raises:
        RecipeError: Fewer than two ingredients, another method than linear, or no single score.
    """
    fields = mapping(node, "greedy_soup", "{models: [a model, a model]}")
    fields.check_keys("greedy_soup", ("models",))
    refuse(top, OWN_KEYS, "greedy_soup")
    models = fields.get("models")
    if not isinstance(models, Items) or len(models.items) < 2:  # noqa: PLR2004 - an average
        raise fields.place_of("models").error("models: allowed: a list of two models or more")
    method = top.get("merge_method")
    if method is not None and method.as_text("merge_method") != "linear":
        raise method.place.error("merge_method: greedy_soup averages; write linear, or nothing")
    if isinstance(by, Pareto):
        raise fields.place.error("greedy_soup: goes by one score; pareto gives none")
    weight = Fields(models.place, keyed({"weight": Scalar(models.place, 1, "1", quoted=False)}))
    given: dict[str, Node] = {
        "merge_method": word("linear", fields.place),
        "models": models,
        "parameters": weight,
    }
    return Fields(top.place, {**keyed(given), **top.fields})


class GreedySoup:
    """Proposes ingredients, then averages of ever more of them.

    One that misses gates is worse than any that clears them all. Ingredients that failed are left
    out.

    Args:
        labels: What the ingredients are called.
        make: A trial of some of them, by position, in rising order.
    """

    def __init__(self, labels: Sequence[str], make: Callable[[Sequence[int]], Trial]) -> None:
        self._labels = tuple(labels)
        self._make = make
        self._waiting: list[int] | None = None
        """Ingredients that were not tried in the soup, the best first; None before any scored."""
        self._kept: tuple[int, ...] = ()
        self._best: tuple[bool, float] | None = None

    @property
    def soup(self) -> tuple[str, ...]:
        """The ingredients kept so far, in the recipe's order."""
        return tuple(self._labels[position] for position in sorted(self._kept))

    def ask(self) -> Sequence[Trial]:
        """Every ingredient alone, then one average a round."""
        if self._waiting is None:
            return [self._make([position]) for position in range(len(self._labels))]
        return [self._make(sorted(self._tried))] if self._waiting else []

    @property
    def _tried(self) -> tuple[int, ...]:
        assert self._waiting, "no ingredient is left to try"
        return (*self._kept, self._waiting[0])

    def tell(self, records: Sequence[TrialRecord]) -> None:
        """Put the ingredients in order, or decide on the one just tried."""
        standings = list(map(_standing, records))
        if self._waiting is None:
            scored = {i: one for i, one in enumerate(standings) if one is not None}
            order = sorted(scored, key=scored.__getitem__, reverse=True)
            self._kept, self._waiting = tuple(order[:1]), order[1:]
            self._best = scored[order[0]] if order else None
            return
        [found] = standings
        tried = self._tried
        del self._waiting[0]
        if found is not None and self._best is not None and found >= self._best:
            self._kept, self._best = tried, found

    def tie_break(self, record: TrialRecord) -> int:
        """The larger soup: the smaller one was left for it."""
        return -int(record.values["models"])


def _standing(record: TrialRecord) -> tuple[bool, float] | None:
    return None if record.score is None else (not record.missed, record.score)
