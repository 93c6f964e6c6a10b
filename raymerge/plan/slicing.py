"""Slices: ranges of layers, taken from sources and numbered through.

Nothing here knows an architecture. A layer's number is the first all-digit component of a dotted
name, and what stands before it names the stack. The first slice also has what stands before the
layers, the last what stands after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.errors import PlanError
from raymerge.methods.registry import Over
from raymerge.plan.ends import stands_before
from raymerge.plan.graph import Input
from raymerge.plan.parts import Part, Placed, Stack, behind_layer, in_stack, layer_prefix
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.recipe.resolve import layer_of
from raymerge.recipe.section import Section

Layers = Mapping[int, Sequence[tuple[str, Input]]]
"""Tensors of a stack by layer, each with what follows the layer's number in its name."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A section's sources, by position."""

    members: tuple[int, ...]
    """Those that have to hold each of its tensors, base included."""
    order: tuple[int, ...]
    """What its method takes, in the method's order."""
    donor: int
    """Who gives what is kept."""


def seat(
    recipe: Recipe, section: Section, labels: Sequence[str], members: Iterable[int] | None = None
) -> Seat:
    """Find a section's sources among all.

    Args:
        recipe: The recipe.
        section: One of its sections.
        labels: Of all sources.
        members: Positions of those that take part; None is the section's own.
    """
    sources = [labels.index(source.label) for source in section.sources]
    base = None if section.base is None else labels.index(section.base.label)
    if members is None:
        members = dict.fromkeys([*sources, *([] if base is None else [base])])
    donor = labels.index(recipe.donor.label)
    if donor not in (present := tuple(members)):
        donor = sources[0] if base is None else base
    relative = recipe.over(section) is not Over.SOURCES
    return Seat(
        members=present,
        order=(base, *sources) if relative and base is not None else tuple(sources),
        donor=donor,
    )


@dataclass(frozen=True, slots=True)
class Slicer:
    """Cuts one stack of layers."""

    recipe: Recipe
    views: Sequence[View]
    """One per source, with the tensors of the module."""
    labels: Sequence[str]
    copied: frozenset[str]
    """Tensors of the donor that `keep:` covers, by their names there."""
    within: str
    """The module, as a message names it; empty for a whole model."""

    def slices(self, sections: Sequence[Section]) -> tuple[Stack, list[Part]]:
        """The stack that the sections build, and the part of each.

        Raises:
            PlanError: No stack or several in a source, or a range that goes beyond it.
        """
        seats = [seat(self.recipe, section, self.labels) for section in sections]
        members = dict.fromkeys(position for one in seats for position in one.members)
        name = self._stack_name(list(members))
        layers = [_by_layer(view, name) for view in self.views]
        outside = [self._outside(view, name) for view in self.views]
        parts: list[Part] = []
        first = 0
        for number, (section, own) in enumerate(zip(sections, seats, strict=True)):
            self._check_ranges(section, name, layers)
            placed = self._place(section, name, first)
            first += placed.count
            last = number == len(sections) - 1
            around = [_ends(tensors, first=number == 0, last=last) for tensors in outside]
            views = [
                _sliced(view, placed, layers[position], around[position], position)
                if position in own.members
                else replace(view, tensors={})
                for position, view in enumerate(self.views)
            ]
            parts.append(
                Part(
                    section=section,
                    views=views,
                    members=own.members,
                    order=own.order,
                    donor=own.donor,
                    placed=placed,
                )
            )
        return _stack(name, parts, [max(found, default=-1) + 1 for found in layers]), parts

    def _place(self, section: Section, stack: str, first: int) -> Placed:
        assert section.ranges is not None
        starts = {self.labels.index(label): r.start for label, r in section.ranges.items()}
        count = len(next(iter(section.ranges.values())))
        return Placed(stack=stack, first=first, count=count, starts=starts)

    def _check_ranges(self, section: Section, stack: str, layers: Sequence[Layers]) -> None:
        assert section.ranges is not None
        for label, wanted in section.ranges.items():
            found = layers[self.labels.index(label)]
            where = f"{self.recipe.path}:{wanted.line}: layer_range is [{wanted.start}, "
            count = max(found) + 1
            if wanted.stop > count:
                raise PlanError(
                    f"{where}{wanted.stop}], and {label} has {count} layers "
                    f"({layer_prefix(stack, 0)} to {layer_prefix(stack, count - 1)}); the range "
                    f"may end at {count} at most",
                    source=label,
                )
            absent = [n for n in range(wanted.start, wanted.stop) if n not in found]
            if absent:
                raise PlanError(
                    f"{where}{wanted.stop}], and {label} has no tensor of layer "
                    f"{layer_prefix(stack, absent[0])}",
                    source=label,
                )

    def _stack_name(self, members: Sequence[int]) -> str:
        """The one stack to slice, the same in all the sources."""
        found = {position: self._stacks(self.views[position]) for position in members}
        for position, stacks in found.items():
            if len(stacks) != 1:
                raise PlanError(self._which_stack(position, stacks), source=self.labels[position])
        names = {position: next(iter(stacks)) for position, stacks in found.items()}
        first = names[members[0]]
        for position, name in names.items():
            if name != first:
                one, other = self.labels[members[0]], self.labels[position]
                raise PlanError(
                    f"{self.recipe.path}: slices: {one} has its layers under {first}, {other} "
                    f"under {name}; sources must be of one architecture",
                    source=other,
                )
        return first

    def _stacks(self, view: View) -> dict[str, int]:
        """The stacks that are not set aside as a whole, with their number of layers."""
        every: dict[str, int] = {}
        wanted: dict[str, None] = {}
        for name in view.tensors:
            layer = layer_of(name)
            if layer is None:
                continue
            every[layer[0]] = max(layer[1] + 1, every.get(layer[0], 0))
            if layer[0] not in wanted and not self._set_aside(name):
                wanted[layer[0]] = None
        return {stack: every[stack] for stack in wanted} if len(every) > 1 else every

    def _set_aside(self, name: str) -> bool:
        """Whether the recipe copies or drops the tensor of that name."""
        return matches(self.recipe.keep, name) or matches(self.recipe.drop, name)

    def _which_stack(self, position: int, found: Mapping[str, int]) -> str:
        label, where = self.labels[position], f"{self.recipe.path}: slices:"
        within = f" in {self.within}" if self.within else ""
        if not found:
            return (
                f"{where} {label} has no layers{within}: no tensor name has a number in it, as "
                "model.layers.0.mlp.up_proj.weight has"
            )
        listed = ", ".join(f"{name} ({count} layers)" for name, count in found.items())
        return (
            f"{where} {label} has {len(found)} stacks of layers{within}: {listed}. Say which to "
            "slice by writing the slices under `modules:` with its name or a prefix of it, and "
            "copy the others with `keep:` or leave them out with `drop:`"
        )

    def _outside(self, view: View, stack: str) -> dict[str, Input]:
        """Tensors outside the stack, but for those copied from the donor."""
        return {
            name: tensor
            for name, tensor in view.tensors.items()
            if not in_stack(name, stack) and name not in self.copied
        }


Ends = tuple[Mapping[str, Input], Mapping[str, Input]]
"""Tensors before the layers, and after them."""


def _ends(outside: Mapping[str, Input], *, first: bool, last: bool) -> Ends:
    """What a slice has besides its layers."""
    before = {name: t for name, t in outside.items() if first and stands_before(name)}
    return before, {name: t for name, t in outside.items() if last and not stands_before(name)}


def _sliced(view: View, placed: Placed, layers: Layers, ends: Ends, position: int) -> View:
    """A source as a slice sees it."""
    numbered = dict(_renumbered(layers, placed, position))
    return replace(view, tensors={**ends[0], **numbered, **ends[1]})


def _by_layer(view: View, stack: str) -> Layers:
    layers: dict[int, list[tuple[str, Input]]] = {}
    for name, tensor in view.tensors.items():
        layer = layer_of(name)
        if layer is not None and layer[0] == stack:
            layers.setdefault(layer[1], []).append((behind_layer(name, stack), tensor))
    return layers


def _renumbered(layers: Layers, placed: Placed, position: int) -> Iterator[tuple[str, Input]]:
    """A slice of a source's layers, under the names they get in the output."""
    start = placed.starts[position]
    for number in range(placed.count):
        prefix = layer_prefix(placed.stack, placed.first + number)
        for rest, tensor in layers.get(start + number, ()):
            yield prefix + rest, tensor


def _stack(name: str, parts: Sequence[Part], depths: Sequence[int]) -> Stack:
    slices = [part.placed for part in parts if part.placed is not None]
    outside = [
        list(dict.fromkeys(n for view in part.views for n in view.tensors if not in_stack(n, name)))
        for part in (parts[0], parts[-1])
    ]
    return Stack(
        name=name,
        slices=tuple(slices),
        origin=tuple(
            (part.donor, placed.starts[part.donor] + number)
            for part, placed in zip(parts, slices, strict=True)
            for number in range(placed.count)
        ),
        depths=tuple(depths),
        before=tuple(n for n in outside[0] if stands_before(n)),
        after=tuple(n for n in outside[1] if not stands_before(n)),
    )
