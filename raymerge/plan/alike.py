"""Layers stacked from several sources have to be of one architecture, merged or only copied.

Nothing compares a copied layer with another source's, and config.json is one source's: a layer with
a bias more, or of another width, would make a checkpoint that no loader takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymerge.errors import PlanError
from raymerge.plan.graph import Input
from raymerge.plan.parts import Part, Stack, behind_layer, in_stack
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.recipe.resolve import layer_of

Kind = frozenset[tuple[str, tuple[int, ...]]]
"""A layer's tensors: what follows the layer's number in the name, and the shape."""
_MAX_SHOWN = 3


def check_alike(
    recipe: Recipe, views: Sequence[View], stack: Stack, parts: Sequence[Part], *, donor: int
) -> None:
    """Raise unless every layer of a stack is like one of the model whose config the output gets.

    Args:
        recipe: The recipe.
        views: One per source, under the sources' own names.
        stack: What slices build.
        parts: The stack's, with the tensors to write.
        donor: Position of the source that gives the config.
    """
    model = donor if stack.depths[donor] else stack.origin[0][0]
    kept = {n: t for n, t in views[model].tensors.items() if not matches(recipe.drop, n)}
    kinds = set(_kinds(kept, stack.name).values())
    for part in parts:
        position = part.order[0]
        if position == model:
            continue
        tensors = {n: t for n in part.names if (t := part.views[position].tensors.get(n))}
        for number, kind in _kinds(tensors, stack.name).items():
            if kind not in kinds:
                source = views[position].label
                raise PlanError(
                    f"{recipe.path}: slices: layer {_where(part, number)} of {source} is like no "
                    f"layer of {views[model].label}, whose config.json the output gets; the "
                    f"nearest differs in {_difference(kind, kinds)}. Slices must be of one "
                    "architecture and width",
                    source=source,
                )
        outside = {n: t for n, t in tensors.items() if not in_stack(n, stack.name)}
        _check_outside(recipe, views[position], views[model], outside)


def _kinds(tensors: Mapping[str, Input], stack: str) -> dict[int, Kind]:
    layers: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in tensors.items():
        layer = layer_of(name)
        if layer is not None and layer[0] == stack:
            layers.setdefault(layer[1], []).append((behind_layer(name, stack), tensor.shape))
    return {number: frozenset(layer) for number, layer in layers.items()}


def _where(part: Part, number: int) -> int:
    """The layer's number in the source."""
    assert part.placed is not None
    return number - part.placed.first + part.placed.starts[part.order[0]]


def _difference(kind: Kind, kinds: set[Kind]) -> str:
    """The first tensors in which a layer differs from the nearest of the kinds."""
    nearest = min(kinds, key=lambda other: (len(kind ^ other), sorted(other)), default=frozenset())
    differing = sorted(kind ^ nearest)[:_MAX_SHOWN]
    return ", ".join(f"{name.lstrip('.')} {list(shape)}" for name, shape in differing)


def _check_outside(recipe: Recipe, source: View, model: View, outside: Mapping[str, Input]) -> None:
    for name, tensor in outside.items():
        other = model.tensors.get(name)
        if other is None or other.shape == tensor.shape:
            continue
        raise PlanError(
            f"{recipe.path}: slices: {name} comes from {source.label}, where it has shape "
            f"{list(tensor.shape)}; it has {list(other.shape)} in {model.label}, whose config.json "
            "the output gets. Slices must be of one architecture, width and vocabulary",
            source=source.label,
            tensor=name,
        )
