"""Parts of an output: which tensors one section of the recipe makes, and where its layers stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raymerge.plan.views import View
from raymerge.recipe import Knobs
from raymerge.recipe.resolve import Distinct, depths, layer_of, make_resolver
from raymerge.recipe.section import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A slice's place in the output."""

    stack: str
    """What stands before the layer's number in a name, such as `model.layers`."""
    first: int
    """Number of its first layer in the output."""
    count: int
    starts: Mapping[int, int]
    """Number of its first layer in each source, by the source's position."""

    def depth(self, name: str) -> float:
        """Relative depth in the slice: 0 to 1, 1 in a slice of one layer, 0 outside the layers."""
        layer = layer_of(name)
        if layer is None or layer[0] != self.stack:
            return 0.0
        return (layer[1] - self.first) / (self.count - 1) if self.count > 1 else 1.0

    def name_in(self, position: int, name: str) -> str:
        """What the output's tensor `name` is called in the source at `position`."""
        layer = layer_of(name)
        if layer is None or layer[0] != self.stack:
            return name
        number = layer[1] - self.first + self.starts[position]
        return layer_prefix(self.stack, number) + behind_layer(name, self.stack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tensors of the output that one section makes, its sources under the output's names."""

    section: Section | None
    """None where tensors can only be kept or dropped."""
    views: Sequence[View]
    """One per source of the recipe, in that order; those with no part in it hold nothing."""
    members: tuple[int, ...]
    """Positions of the sources, base included, that have to hold each of its tensors."""
    order: tuple[int, ...]
    """Positions of what its method takes, in the method's order."""
    donor: int
    """Position of the source that gives the tensors kept."""
    placed: Placed | None = None
    names: tuple[str, ...] = ()
    """Tensors to write."""
    kept: frozenset[str] = frozenset()

    def resolver(self, distinct: Distinct) -> Callable[[str], Knobs]:
        """A function from a tensor's name to its knobs."""
        section, placed = self.section, self.placed
        if section is None:
            return make_resolver((), lambda: depths(()))
        if placed is None:
            return make_resolver(section.settings, lambda: depths(self.names), None, distinct)
        sources = self.order[len(self.order) - len(section.sources) :]
        renamed = any(placed.starts[position] != placed.first for position in sources)

        def own_names(name: str) -> tuple[str, ...]:
            return tuple(placed.name_in(position, name) for position in sources)

        return make_resolver(
            section.settings, lambda: placed.depth, own_names if renamed else None, distinct
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack of layers that slices build."""

    name: str
    slices: tuple[Placed, ...]
    origin: tuple[tuple[int, int], ...]
    """For each layer of the output the source, by position, and its layer that a config is about:
    the base, else the first source."""
    depths: tuple[int, ...]
    """How many layers each source has, those included that no slice takes from."""
    before: tuple[str, ...]
    """Tensors from the sources of the first slice."""
    after: tuple[str, ...]
    """Tensors from the sources of the last slice."""


def layer_prefix(stack: str, number: int) -> str:
    """How the names of a layer's tensors begin: `model.layers.7`."""
    return f"{stack}.{number}" if stack else str(number)


def in_stack(name: str, stack: str) -> bool:
    """Whether the tensor belongs to a layer of the stack."""
    layer = layer_of(name)
    return layer is not None and layer[0] == stack


def behind_layer(name: str, stack: str) -> str:
    """What follows the layer's number in the name of a tensor of the stack."""
    _, dot, rest = name[len(stack) + 1 if stack else 0 :].partition(".")
    return dot + rest
