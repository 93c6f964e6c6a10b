"""Sections over sources: which layers of which source become which layers of the output.

A section that takes every layer where it stands sees its sources as they are. A slice sees each
through a view of its own (`plan.slicing`), in which the layers it takes have the numbers they get
in the output and the others are not there. From there on matching, knobs and steps know nothing of
slices: an input merely has another name in its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raymerge.checkpoint.ties import TiePolicy
from raymerge.plan.graph import Input
from raymerge.plan.modules import WHOLE, Territory, territories
from raymerge.plan.parts import Part, Stack, in_stack
from raymerge.plan.slicing import Seat, Slicer, seat
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.recipe.section import Section


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
        section = recipe.sections[0]
        return Parts([_standing(section, views, seat(recipe, section, labels, range(len(views))))])
    places = territories(recipe, views)
    groups: dict[str | None, list[Section]] = {}
    for section in recipe.sections:
        groups.setdefault(section.module, []).append(section)
    views = [_with_head(view, tie) for view in views]
    donor = labels.index(recipe.donor.label)
    copied = frozenset(name for name in views[donor].tensors if matches(recipe.keep, name))
    rest = [_outside(view, tuple(places.values())) for view in views]
    found = Parts()
    for module, sections in groups.items():
        territory = places[module]
        inside = [_inside(view, territory) for view in views]
        if sections[0].ranges is None:
            found.parts.append(_standing(sections[0], inside, seat(recipe, sections[0], labels)))
            continue
        within = "" if territory == WHOLE else territory.shown
        stack, parts = Slicer(recipe, inside, labels, copied, within).slices(sections)
        found.stacks.append(stack)
        found.parts.extend(parts)
        around = inside[donor].tensors.items()
        rest[donor] |= {n: t for n, t in around if n in copied and not in_stack(n, stack.name)}
    found.parts.append(_rest(views, rest, donor))
    return found


def _standing(section: Section, views: Sequence[View], seat: Seat) -> Part:
    """The part of a section that takes its sources' layers where they stand."""
    return Part(
        section=section,
        views=[v if p in seat.members else replace(v, tensors={}) for p, v in enumerate(views)],
        members=seat.members,
        order=seat.order,
        donor=seat.donor,
    )


def _rest(views: Sequence[View], tensors: Sequence[Mapping[str, Input]], donor: int) -> Part:
    """What no section has: for the recipe to keep or to drop."""
    return Part(
        section=None,
        views=[replace(view, tensors=own) for view, own in zip(views, tensors, strict=True)],
        members=(),
        order=(donor,),
        donor=donor,
    )


def _with_head(view: View, tie: TiePolicy | None) -> View:
    """The view with the embedding under the head's name too, where it stands in for it."""
    if tie is None or view.label not in tie.stand_ins:
        return view
    return replace(view, tensors={**view.tensors, tie.head: view.tensors[tie.embedding]})


def _outside(view: View, places: Sequence[Territory]) -> dict[str, Input]:
    return {n: t for n, t in view.tensors.items() if not any(place.holds(n) for place in places)}


def _inside(view: View, territory: Territory) -> View:
    return replace(view, tensors={n: t for n, t in view.tensors.items() if territory.holds(n)})
