"""Sections over sources: which layers of which source become which layers of the output.

A section that takes every layer where it stands sees its sources as they are. A slice sees each
through a view of its own, in which the layers it takes have the numbers they get in the output and
the others are not there; the first slice also has what stands before the layers, the last what
stands after them. From there on matching, knobs and steps know nothing of slices: an input merely
has another name in its source.

Nothing here knows an architecture. A layer's number is the first all-digit component of a dotted
name, and what stands before it names the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raymerge.checkpoint.ties import TiePolicy
from raymerge.errors import PlanError
from raymerge.methods.registry import Over
from raymerge.plan.ends import stands_before
from raymerge.plan.graph import Input
from raymerge.plan.modules import Territory, territories
from raymerge.plan.views import View
from raymerge.recipe import Knobs, Recipe
from raymerge.recipe.patterns import matches
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
        rest = name[len(_layer(self.stack, layer[1])) :]
        return _layer(self.stack, layer[1] - self.first + self.starts[position]) + rest


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
    depths: Mapping[int, int]
    """How many layers each source has."""
    before: tuple[str, ...]
    """Tensors from the sources of the first slice."""
    after: tuple[str, ...]
    """Tensors from the sources of the last slice."""


@dataclass(slots=True)
class Parts:
    """All that sections make of the sources."""

    parts: list[Part] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)


def cut(recipe: Recipe, views: Sequence[View], tie: TiePolicy | None) -> Parts:
    """Cut the output into the parts that the recipe's sections make.

    Args:
        recipe: The recipe.
        views: One per `recipe.all_sources`, in that order.
        tie: Whose head is whose embedding.

    Raises:
        PlanError: A module that no tensor, or that several prefixes, could be; sources without one
            stack of layers to slice; a range beyond the last layer.
    """
    labels = [view.label for view in views]
    if recipe.whole:
        return Parts([_whole(recipe, recipe.sections[0], views, labels)])
    places = territories(recipe, views)
    groups: dict[str | None, list[Section]] = {}
    for section in recipe.sections:
        groups.setdefault(section.module, []).append(section)
    headed = [_with_head(view, tie) for view in views]
    donor = headed[labels.index(recipe.donor.label)]
    cutter = _Cutter(
        recipe=recipe,
        views=headed,
        labels=labels,
        copied=frozenset(name for name in donor.tensors if matches(recipe.keep, name)),
        sliced=[places[module] for module, group in groups.items() if group[0].ranges is not None],
    )
    found = Parts()
    for module, sections in groups.items():
        territory = places[module]
        if sections[0].ranges is None:
            inside = [_inside(view, territory) for view in cutter.views]
            found.parts.append(_whole(recipe, sections[0], inside, labels))
        else:
            stack, parts = cutter.slices(sections, territory)
            found.stacks.append(stack)
            found.parts.extend(parts)
    found.parts.append(cutter.rest(found.stacks, list(places.values())))
    return found


def _whole(recipe: Recipe, section: Section, views: Sequence[View], labels: list[str]) -> Part:
    """The part of a section that takes its sources as they stand."""
    members = _members(section, labels) if section.module else tuple(range(len(views)))
    return Part(
        section=section,
        views=[v if p in members else replace(v, tensors={}) for p, v in enumerate(views)],
        members=members,
        order=_order(recipe, section, labels),
        donor=_donor(recipe, section, labels),
    )


def _members(section: Section, labels: list[str]) -> tuple[int, ...]:
    refs = (*section.sources, section.base) if section.base else section.sources
    return tuple(dict.fromkeys(labels.index(ref.label) for ref in refs))


def _order(recipe: Recipe, section: Section, labels: list[str]) -> tuple[int, ...]:
    sources = [labels.index(source.label) for source in section.sources]
    if section.base is not None and recipe.method.over is not Over.SOURCES:
        return (labels.index(section.base.label), *sources)
    return tuple(sources)


def _donor(recipe: Recipe, section: Section, labels: list[str]) -> int:
    """Who gives what is kept: the recipe's donor where it takes part, else the section's own."""
    donor = labels.index(recipe.donor.label)
    if section.module is None and section.ranges is None:
        return donor
    own = section.base or section.sources[0]
    return donor if donor in _members(section, labels) else labels.index(own.label)


def _with_head(view: View, tie: TiePolicy | None) -> View:
    """The view with the embedding under the head's name too, where it stands in for it."""
    if tie is None or view.label not in tie.stand_ins:
        return view
    return replace(view, tensors={**view.tensors, tie.head: view.tensors[tie.embedding]})


def _inside(view: View, territory: Territory) -> View:
    return replace(view, tensors={n: t for n, t in view.tensors.items() if territory.holds(n)})


Layers = Mapping[int, Sequence[tuple[str, Input]]]
"""Tensors of a stack by layer, each with what follows the layer's number in its name."""


@dataclass(frozen=True, slots=True)
class _Cutter:
    recipe: Recipe
    views: Sequence[View]
    labels: list[str]
    copied: frozenset[str]
    """Tensors of the donor that `keep:` covers, by their names there."""
    sliced: Sequence[Territory]

    def slices(self, sections: list[Section], territory: Territory) -> tuple[Stack, list[Part]]:
        """The parts of a stack's slices, numbered through."""
        members = sorted({p for s in sections for p in _members(s, self.labels)})
        name = self._stack_name(members, territory)
        layers = {p: _by_layer(self.views[p], name, territory) for p in members}
        counts = {p: max(found, default=-1) + 1 for p, found in layers.items()}
        donor = self.labels.index(self.recipe.donor.label)
        if donor not in counts:
            counts[donor] = max(_by_layer(self.views[donor], name, territory), default=-1) + 1
        outside = {p: self._outside(self.views[p], name, territory) for p in members}
        parts: list[Part] = []
        first = 0
        for number, section in enumerate(sections):
            self._check_ranges(section, name, counts)
            placed = self._place(section, name, first)
            first += placed.count
            ends = (number == 0, number == len(sections) - 1)
            parts.append(self._part(section, placed, layers, outside, ends))
        return _stack(name, parts, counts), parts

    def _part(
        self,
        section: Section,
        placed: Placed,
        layers: Mapping[int, Layers],
        outside: Mapping[int, Mapping[str, Input]],
        ends: tuple[bool, bool],
    ) -> Part:
        members = _members(section, self.labels)
        views = []
        for position, view in enumerate(self.views):
            tensors: dict[str, Input] = {}
            if position in members:
                around = outside[position]
                if ends[0]:
                    tensors |= {n: t for n, t in around.items() if stands_before(n)}
                tensors |= dict(_renumbered(layers[position], placed, position))
                if ends[1]:
                    tensors |= {n: t for n, t in around.items() if not stands_before(n)}
            views.append(replace(view, tensors=tensors))
        return Part(
            section=section,
            views=views,
            members=members,
            order=_order(self.recipe, section, self.labels),
            donor=_donor(self.recipe, section, self.labels),
            placed=placed,
        )

    def _place(self, section: Section, stack: str, first: int) -> Placed:
        assert section.ranges is not None
        starts = {self.labels.index(label): r.start for label, r in section.ranges.items()}
        count = len(next(iter(section.ranges.values())))
        return Placed(stack=stack, first=first, count=count, starts=starts)

    def _check_ranges(self, section: Section, stack: str, counts: Mapping[int, int]) -> None:
        assert section.ranges is not None
        for label, layers in section.ranges.items():
            count = counts[self.labels.index(label)]
            if layers.stop > count:
                raise PlanError(
                    f"{self.recipe.path}:{layers.line}: layer_range is [{layers.start}, "
                    f"{layers.stop}], and {label} has {count} layers ({_layer(stack, 0)} to "
                    f"{_layer(stack, count - 1)}); the range may end at {count} at most",
                    source=label,
                )

    def _set_aside(self, name: str) -> bool:
        """Whether the recipe copies or drops the tensor of that name."""
        return matches(self.recipe.keep, name) or matches(self.recipe.drop, name)

    def _stack_name(self, members: Sequence[int], territory: Territory) -> str:
        """The one stack to slice, the same in all the sources."""
        for position in members:
            found = self._stacks(self.views[position], territory)
            if len(found) != 1:
                raise PlanError(self._which_stack(position, found, territory))
            if position == members[0]:
                first = next(iter(found))
            elif first not in found:
                one, other = self.labels[members[0]], self.labels[position]
                raise PlanError(
                    f"{self.recipe.path}: slices: {one} has its layers under {first}, {other} "
                    f"under {', '.join(found)}; sources must be of one architecture",
                    source=other,
                )
        return first

    def _stacks(self, view: View, territory: Territory) -> dict[str, int]:
        """The stacks that are not set aside as a whole, with their number of layers."""
        every: dict[str, int] = {}
        wanted: dict[str, None] = {}
        for name in view.tensors:
            layer = layer_of(name)
            if layer is None or not territory.holds(name):
                continue
            every[layer[0]] = max(layer[1] + 1, every.get(layer[0], 0))
            if layer[0] not in wanted and not self._set_aside(name):
                wanted[layer[0]] = None
        return {stack: every[stack] for stack in wanted} if len(every) > 1 else every

    def _which_stack(self, position: int, found: Mapping[str, int], territory: Territory) -> str:
        label, where = self.labels[position], f"{self.recipe.path}: slices:"
        within = f" in {territory.prefix}" if territory.prefix else ""
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

    def _outside(self, view: View, stack: str, territory: Territory) -> dict[str, Input]:
        """Tensors of the territory outside the stack, but for those copied from the donor."""
        return {
            name: tensor
            for name, tensor in view.tensors.items()
            if territory.holds(name) and not _in_stack(name, stack) and name not in self.copied
        }

    def rest(self, stacks: Sequence[Stack], places: Sequence[Territory]) -> Part:
        """What no section has: for the recipe to keep or to drop."""
        donor = self.labels.index(self.recipe.donor.label)
        views = []
        for position, view in enumerate(self.views):
            tensors = {
                name: tensor
                for name, tensor in view.tensors.items()
                if not any(place.holds(name) for place in places)
                or (
                    position == donor
                    and name in self.copied
                    and any(place.holds(name) for place in self.sliced)
                    and not any(_in_stack(name, stack.name) for stack in stacks)
                )
            }
            views.append(replace(view, tensors=tensors))
        return Part(section=None, views=views, members=(), order=(donor,), donor=donor)


def _layer(stack: str, number: int) -> str:
    return f"{stack}.{number}" if stack else str(number)


def _in_stack(name: str, stack: str) -> bool:
    layer = layer_of(name)
    return layer is not None and layer[0] == stack


def _by_layer(view: View, stack: str, territory: Territory) -> Layers:
    layers: dict[int, list[tuple[str, Input]]] = {}
    for name, tensor in view.tensors.items():
        layer = layer_of(name)
        if layer is not None and layer[0] == stack and territory.holds(name):
            rest = name[len(_layer(stack, layer[1])) :]
            layers.setdefault(layer[1], []).append((rest, tensor))
    return layers


def _renumbered(layers: Layers, placed: Placed, position: int) -> Iterator[tuple[str, Input]]:
    """A slice of a source's layers, under the names they get in the output."""
    start = placed.starts[position]
    for number in range(placed.count):
        prefix = _layer(placed.stack, placed.first + number)
        for rest, tensor in layers.get(start + number, ()):
            yield prefix + rest, tensor


def _stack(name: str, parts: Sequence[Part], counts: Mapping[int, int]) -> Stack:
    slices = [part.placed for part in parts if part.placed is not None]
    outside = [
        list(
            dict.fromkeys(n for view in part.views for n in view.tensors if not _in_stack(n, name))
        )
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
        depths=counts,
        before=tuple(n for n in outside[0] if stands_before(n)),
        after=tuple(n for n in outside[1] if not stands_before(n)),
    )
