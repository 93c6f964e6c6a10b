"""Several stages as one graph: the result of each is a view whose tensors are merged when read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymerge.checkpoint.layout import Shard
from raymerge.checkpoint.ties import TiePolicy
from raymerge.errors import PlanError
from raymerge.plan.graph import AppliedAdapter, DeltaStep, PlannedSource, TensorNode
from raymerge.plan.layer_config import Edit, edited
from raymerge.plan.match import Match
from raymerge.plan.merged import as_input
from raymerge.plan.parts import Stack
from raymerge.plan.remapped import Remapped
from raymerge.plan.tokenizer import PlannedTokenizer
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
    tokenizer: PlannedTokenizer | None
    config_edits: tuple[Edit, ...]
    """What slices change in the config that the stage's donor comes with."""
    applied: Mapping[str, AppliedAdapter]
    """What each adapter does, by the label of its catalog."""
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
    stacks: tuple[Stack, ...]
    """Layers that its slices build."""
    config_edits: tuple[Edit, ...]
    """What they change in the config that its donor comes with."""
    applied: Mapping[str, AppliedAdapter]
    """What each adapter does, by the label of its source."""

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
        stored: The checkpoints, in the order of `recipe.read`.
        decide: Plans one stage.

    Returns:
        What the stage that is written merges, one view per `recipe.all_sources`, and the others.

    Raises:
        PlanError: A stage's sources do not match; its name is in the message.
    """
    if not recipe.stages:
        return list(stored[: len(recipe.all_sources)]), ()
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
            _refuse_tokenizer(stage, decided)
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
                stacks=decided.matched.stacks,
                config_edits=decided.config_edits,
                applied=decided.applied,
            )
        )
    return seen_by(recipe), tuple(planned)


def _fitted(config: Mapping[str, Any], decided: Decided) -> Mapping[str, Any]:
    """The donor's config as it would lie beside the stage's result, as far as a plan reads it."""
    config = edited(config, decided.config_edits)
    tie = decided.matched.tie
    if tie is None or tie.embedding not in decided.nodes:
        return config
    return {**config, "tie_word_embeddings": tie.head not in decided.nodes}


def composed_edits(
    recipe: Recipe, stages: Sequence[PlannedStage], decided: Decided
) -> tuple[Edit, ...]:
    """What all slices that the donor's config comes through change in it, the last word of each."""
    by_name = {stage.name: stage.config_edits for stage in stages}
    own = [by_name[str(each.name)] for each in recipe.lineage[:0:-1]]
    edits = {edit.path: edit for group in (*own, decided.config_edits) for edit in group}
    return tuple(edits.values())


def _refuse_tokenizer(stage: Recipe, decided: Decided) -> None:
    """Raise if the stage's tokenizer would be another than that of its donor."""
    if stage.chat_template is not None:
        what = "chat_template: raymerge settles it"
    elif stage.tokenizer is not None and not _is_donors(stage, decided):
        what = f"tokenizer: {stage.tokenizer.shown} changes the vocabulary, and raymerge does that"
    else:
        return
    raise PlanError(
        f"{stage.path}: {what} only in the stage that is written. Give it there, or run this "
        "stage on its own and name its output where its result is used"
    )


def _is_donors(stage: Recipe, decided: Decided) -> bool:
    """Whether every source has its rows where the donor has them, and the tokenizer is its own."""
    assert decided.tokenizer is not None, stage.name
    vocabulary = decided.tokenizer.vocabulary
    assert vocabulary is not None, stage.name
    if vocabulary.donor != stage.donor.label or vocabulary.new or vocabulary.removed:
        return False
    inputs = (one for node in decided.nodes.values() for one in node.inputs)
    return not any(isinstance(one, Remapped) for one in inputs)


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
