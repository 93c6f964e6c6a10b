"""Layers stacked from several sources have to be of one architecture, merged or only copied.

Nothing compares a copied layer with another source's, and config.json is one source's: a layer with
a bias more, or of another width, would make a checkpoint that no loader takes. Nor would one whose
single tensor for all layers, such as the position bias in T5's first, is lost or in another layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from raymerge.errors import PlanError
from raymerge.plan.graph import Input
from raymerge.plan.parts import Part, Stack, behind_layer, in_stack, layer_prefix
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

    What one layer of that model has beside all that another has is there by position, and has to
    be in that layer of the output, and in no other.

    Args:
        recipe: The recipe.
        views: One per source, under the sources' own names.
        stack: What slices build.
        parts: The stack's, with the tensors to write.
        donor: Position of the source that gives the config.
    """
    model = donor if stack.depths[donor] else stack.origin[0][0]
    kept = {n: t for n, t in views[model].tensors.items() if not matches(recipe.drop, n)}
    layers = _kinds(kept, stack.name)
    kinds = set(layers.values())
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
    _check_lone(recipe, views[model], stack, parts, layers)


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


def _check_lone(
    recipe: Recipe, model: View, stack: Stack, parts: Sequence[Part], layers: Mapping[int, Kind]
) -> None:
    """Raise where a tensor that one layer has on top of another's would be lost or out of place.

    A layer of another kind, such as the one dense layer of a mixture, has tensors in place of
    others: configs describe those by layer.
    """
    counts = Counter(rest for kind in layers.values() for rest, _ in kind)
    lone = {
        rest: number
        for number, kind in layers.items()
        for rest, _ in sorted(kind)
        if counts[rest] == 1
    }
    found: dict[str, list[int]] = {rest: [] for rest in lone}
    for name in (name for part in parts for name in part.names if lone):
        layer = layer_of(name)
        if layer and layer[0] == stack.name and (rest := behind_layer(name, stack.name)) in found:
            found[rest].append(layer[1])
    for rest, number in lone.items():
        if not any(other < layers[number] for other in layers.values()):
            continue
        # The last layer's may be there because it is the last.
        last = {len(stack.origin) - 1} if number == max(layers) else set[int]()
        if len(found[rest]) != 1 or found[rest][0] not in {number, *last}:
            raise _misplaced(recipe, model, stack, (number, rest), found[rest])


def _misplaced(
    recipe: Recipe, model: View, stack: Stack, lone: tuple[int, str], found: Sequence[int]
) -> PlanError:
    number, rest = lone
    name = layer_prefix(stack.name, number) + rest
    listed = " and ".join(map(str, found))
    there = f"in layer{'s' if found[1:] else ''} {listed}" if found else "in none"
    remedy = f"Let layer {number} of the output, and no other, be layer {number} of a source"
    if number in found:
        more = ", ".join(layer_prefix(stack.name, n) + rest for n in found if n != number)
        remedy += f", or leave out what is too much: drop: [{more}]"
    return PlanError(
        f"{recipe.path}: slices: only layer {number} of {model.label}, whose config.json the "
        f"output gets, has {name}, for all its layers; the output would have it {there}. {remedy}",
        source=model.label,
        tensor=name,
    )


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
