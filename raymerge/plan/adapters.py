"""LoRA adapters: sources whose tensors are worked out from a model's and an adapter's.

`model+adapter` is a source of its own. An adapter alone under `models` is a task vector: it is
added to the recipe's base. Either way the source's view has every tensor that the adapter changes
replaced by a derived one (`adapter_tensors`), and nothing merged is written in between.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.lora import Lora
from raymerge.errors import PlanError
from raymerge.plan.adapter_tensors import AdapterTensors
from raymerge.plan.graph import AppliedAdapter
from raymerge.plan.views import View
from raymerge.recipe import Recipe, SourceRef
from raymerge.recipe.patterns import matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Views with every adapter added."""

    views: list[View]
    """One per `recipe.all_sources`, in that order."""
    applied: Mapping[str, AppliedAdapter]
    """What each adapter does, by the label of its catalog."""
    notes: tuple[str, ...]
    """Adapters that were trained on a model of another name, and those that untie its head."""


def adapt(
    recipe: Recipe,
    catalogs: Sequence[Catalog],
    views: Sequence[View],
    *,
    whole: Recipe | None = None,
) -> Adaptation:
    """Add the adapters of a recipe to what they belong to.

    Args:
        recipe: The recipe.
        catalogs: One per `whole.checkpoints` and then per `whole.adapters`, in that order.
        views: One per `recipe.all_sources`, in that order; any further ones are not looked at.
        whole: The recipe with all stages, where `recipe` is one of several.

    Raises:
        PlanError: An adapter has nothing to be added to, or does not fit it.
        SourceError: An adapter contradicts its own config.
    """
    checkpoints = (whole or recipe).checkpoints
    models = {ref.identity: position for position, ref in enumerate(checkpoints)}
    having = [ref.identity for ref in checkpoints if ref.adapter]
    adapters = {identity: position for position, identity in enumerate(having, start=len(models))}
    adapted = {view.label: view for view in views[: len(recipe.all_sources)]}
    applied: dict[str, AppliedAdapter] = {}
    notes: list[str] = []
    # The base first: an adapter alone is added to it, with whatever the base has of its own.
    for source in sorted(recipe.all_sources, key=lambda source: source != recipe.base):
        if source.location in recipe.results:
            continue
        identity = source.identity
        position = models[identity]
        if catalogs[position].lora is not None:
            under = _base_of(source, recipe)
            view, adapter = replace(adapted[under.label], label=source.label), source
            catalog = catalogs[position]
        elif source.adapter:
            under, view, adapter = source, adapted[source.label], source.adapter
            catalog = catalogs[adapters[identity]]
        else:
            continue
        assert catalog.lora is not None, adapter
        tensors = AdapterTensors(
            view, catalog, catalog.lora, position, adapters.get(identity, position)
        )
        adapted[source.label] = tensors.add()
        applied[catalog.label] = tensors.applied()
        notes.extend(_other_base(adapter, catalog.lora, under))
        head = tensors.untied_head
        if head and not matches(recipe.drop, head):
            notes.append(
                f"{adapter.label}: it holds a head of its own, so the head of {source.label} is no "
                "longer tied to the embedding, as config.json says it is"
            )
    return Adaptation(views=list(adapted.values()), applied=applied, notes=tuple(notes))


def _base_of(source: SourceRef, recipe: Recipe) -> SourceRef:
    """The base that an adapter alone is added to."""
    if source.adapter:
        raise PlanError(
            f"{source.label}: {source.location} is a LoRA adapter itself; + adds an adapter to a "
            "model",
            source=source.label,
        )
    if recipe.base is None:
        raise PlanError(
            f"{source.label} is a LoRA adapter and the recipe has no base_model to add it to. Add "
            f"base_model: <model>, or write <model>+{source.location}",
            source=source.label,
        )
    if source == recipe.base:
        raise PlanError(
            f"base_model: {source.label} is a LoRA adapter, not a model; write the model that it "
            f"was trained on, or <model>+{source.location}",
            source=source.label,
        )
    return recipe.base


def _other_base(adapter: SourceRef, lora: Lora, under: SourceRef) -> list[str]:
    """A note where the adapter was trained on something of another name."""
    if lora.base is None or _name(lora.base) == _name(under.location):
        return []
    return [
        f"{adapter.label}: trained on {lora.base} by its config, added to {under.location} here"
    ]


def _name(location: str) -> str:
    """The last component; of a snapshot in the Hub's cache the repository's."""
    if found := re.search(r"models--(?:.+--)?([^/]+)/snapshots/", location):
        return found[1]
    return os.path.basename(os.path.normpath(location))  # noqa: PTH119 - it may be a repository
