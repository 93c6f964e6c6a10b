"""Several stages as one graph: the result of each is a view whose tensors are merged when read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymerge.checkpoint.layout import Shard
from raymerge.checkpoint.ties import TiePolicy
from raymerge.errors import PlanError
from raymerge.plan.graph import DeltaStep, PlannedSource, TensorNode
from raymerge.plan.match import Match
from raymerge.plan.merged import as_input
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.model import NanPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One stage, planned over its sources."""

    matched: Match
    nodes: Mapping[str, TensorNode]
    """By name, in the order of their bytes."""
    shards: tuple[Shard, ...]
    """Where they are written or, of a stage inside a recipe, would be."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage whose result is used and not written."""

    recipe: Recipe
    nodes: tuple[TensorNode, ...]
    """Every tensor of its result, in the order in which it would have been written."""
    tie: TiePolicy | None
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What other stages call it."""
        assert self.recipe.name is not None
        return self.recipe.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a stage is merged under, whatever other stages are."""

    name: str | None
    """None of the stage that is written."""
    seed: int
    nan: NanPolicy
    labels: tuple[str, ...]
    """What it calls the plan's sources and, behind those, its stages. Draws are keyed by these, as
    they are when the stage is run on its own."""


def terms(stage: Recipe, whole: Recipe, sources: Sequence[PlannedSource]) -> Terms:
    """The terms of one stage of a recipe.

    Args:
        stage: The stage, or `whole`.
        whole: The recipe with all stages.
        sources: The plan's.
    """
    own = {ref.identity: ref.label for ref in stage.all_sources}
    called = {ref.location: ref.label for ref in stage.all_sources if ref.location in stage.results}
    labels = [source.label for source in sources]
    for position, ref in enumerate(whole.checkpoints):
        labels[position] = own.get(ref.identity, ref.label)
    names = [str(inner.name) for inner in whole.stages]
    return Terms(
        name=None if stage is whole else stage.name,
        seed=stage.seed,
        nan=stage.nan,
        labels=(*labels, *(called.get(name, name) for name in names)),
    )


def fuse(
    recipe: Recipe, stored: Sequence[View], decide: Callable[[Recipe, Sequence[View]], Decided]
) -> tuple[list[View], tuple[PlannedStage, ...]]:
    """Plan every stage but the one that is written.

    Args:
        recipe: The recipe.
        stored: The checkpoints, in the order of `recipe.checkpoints`.
        decide: Plans one stage.

    Returns:
        What the stage that is written merges, one view per `recipe.all_sources`, and the others.

    Raises:
        PlanError: A stage's sources do not match; its name is in the message.
    """
    if not recipe.stages:
        return list(stored), ()
    by_identity = {
        ref.identity: view for ref, view in zip(recipe.checkpoints, stored, strict=False)
    }
    results: dict[str, View] = {}
    planned: list[PlannedStage] = []

    def seen_by(stage: Recipe) -> list[View]:
        return [
            replace(
                results[ref.location]
                if ref.location in stage.results
                else by_identity[ref.identity],
                label=ref.label,
            )
            for ref in stage.all_sources
        ]

    for position, stage in enumerate(recipe.stages):
        seen = seen_by(stage)
        try:
            decided = decide(stage, seen)
            _refuse_survey(stage, decided.nodes)
        except PlanError as error:
            raise _in_stage(stage, error) from error
        donor = next(view for view in seen if view.label == stage.donor.label)
        results[str(stage.name)] = View(
            label=str(stage.name),
            config=_fitted(donor.config, decided),
            tensors={
                name: as_input(node, stage=position, source=len(stored) + position)
                for name, node in decided.nodes.items()
            },
        )
        planned.append(
            PlannedStage(
                recipe=stage,
                nodes=tuple(decided.nodes.values()),
                tie=decided.matched.tie,
                dropped=decided.matched.dropped,
                notes=tuple(f"stage {stage.name}: {note}" for note in decided.notes),
            )
        )
    return seen_by(recipe), tuple(planned)


def _fitted(config: Mapping[str, Any], decided: Decided) -> Mapping[str, Any]:
    """The donor's config as it would lie beside the stage's result, as far as a plan reads it."""
    tie = decided.matched.tie
    if tie is None or tie.embedding not in decided.nodes:
        return config
    return {**config, "tie_word_embeddings": tie.head not in decided.nodes}


def _refuse_survey(stage: Recipe, nodes: Mapping[str, TensorNode]) -> None:
    if any(isinstance(node.step, DeltaStep) and node.step.surveyed for node in nodes.values()):
        raise PlanError(
            f"{stage.path}: trim: model needs a survey of all its sources before anything is "
            "merged, which only the stage that is written can have. Run this stage on its own and "
            "name its output where its result is used, or write trim: tensor"
        )


def _in_stage(stage: Recipe, error: PlanError) -> PlanError:
    return PlanError(
        f"stage {stage.name}: {error.message}",
        source=error.source,
        tensor=error.tensor,
        file=error.file,
    )
