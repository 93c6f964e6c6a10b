"""What all stages of a recipe draw on: the checkpoints, and what lies beside their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.checkpoint.catalog import Catalog
from raymerge.errors import PlanError
from raymerge.plan.remapped import Remapped
from raymerge.plan.tokenizer import PlannedTokenizer
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.tokenizer.files import TokenizerFiles


@dataclass(frozen=True, slots=True)
class Stock:
    """Everything that was read of the sources."""

    recipe: Recipe
    """With all stages."""
    catalogs: Sequence[Catalog]
    """One per `recipe.read`, in that order."""
    files: Mapping[str, TokenizerFiles]
    """Tokenizer files, by the catalogs' labels."""

    def tokenizer_files(self, stage: Recipe) -> dict[str, TokenizerFiles]:
        """The tokenizer files of a stage's sources by the stage's labels; a result has its donor's.

        A source that has none is not there.
        """
        lenders = {ref.label: self.recipe.lent(ref, stage).label for ref in stage.all_sources}
        lenders |= {ref.label: ref.label for ref in stage.lenders}
        return {
            label: replace(self.files[lender], label=label)
            for label, lender in lenders.items()
            if lender in self.files
        }

    def lender(self, stage: Recipe) -> View | None:
        """The model that gives a stage its tokenizer and is not merged, if there is one."""
        labels = {ref.label for ref in stage.lenders}
        found = (catalog for catalog in self.catalogs if catalog.label in labels)
        configs = (View(label=one.label, config=one.config, tensors={}) for one in found)
        return next(configs, None)

    def lent(self, stage: Recipe, tokenizer: PlannedTokenizer) -> PlannedTokenizer:
        """The stage's tokenizer with the label of a checkpoint for the donor."""
        if any(ref.label == tokenizer.donor for ref in stage.lenders):
            return tokenizer
        donor = next(ref for ref in stage.all_sources if ref.label == tokenizer.donor)
        return replace(tokenizer, donor=self.recipe.lent(donor, stage).label)


def check_rows_stay(recipe: Recipe, seen: Sequence[View]) -> None:
    """Raise where a policy puts rows of a stage's result, stored nowhere, in another order.

    Args:
        recipe: The stage with the policy.
        seen: Its sources in the output's rows.
    """
    policy = recipe.tokenizer
    if policy is None or not recipe.results:
        return
    for view in seen:
        for name, one in view.tensors.items():
            if isinstance(one, Remapped) and one.results:
                used = ", ".join(sorted(recipe.results))
                raise PlanError(
                    f"{policy.place}: the rows of {name} in {view.label} would be taken from a "
                    f"stage's result and put in another order, which raymerge does with stored "
                    f"tensors alone. Run the stages it uses ({used}) on their own and name their "
                    "outputs here",
                    source=view.label,
                    tensor=name,
                )
