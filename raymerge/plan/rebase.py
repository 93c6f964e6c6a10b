"""Several plans over one list of sources: what they share becomes one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from types import NoneType
from typing import Any, TypeVar

from raymerge.checkpoint.header import TensorEntry
from raymerge.plan.build import Plan
from raymerge.plan.graph import Derived, PlannedSource, Read, TensorNode, Unit
from raymerge.plan.merged import Merged
from raymerge.plan.stages import Terms, terms
from raymerge.recipe.model import NanPolicy

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RebasedPlan:
    """One plan's part of a union."""

    units: tuple[Unit, ...]
    """Inputs' sources are positions in the union."""
    seed: int
    nan: NanPolicy
    labels: tuple[str, ...]
    """What it calls the union's sources and, behind those, its stages; for those that are not its
    own, what another plan does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Union:
    """Plans over the sources of all of them."""

    sources: tuple[PlannedSource, ...]
    stages: tuple[Terms, ...]
    """Stages inside the plans, each once. They stand behind the sources."""
    plans: tuple[RebasedPlan, ...]


def unite(plans: Sequence[Plan]) -> Union:
    """Put plans over the union of their sources.

    Two objects of the result are equal only if they are the same one: steps, inputs and slots may
    be compared by identity, and pickle once.
    """
    sources: dict[object, PlannedSource] = {}
    for plan in plans:
        for source in plan.sources:
            sources.setdefault(_identity(source), source)
    positions = {identity: position for position, identity in enumerate(sources)}
    interned = _Interned()
    stages: dict[object, tuple[int, _Own]] = {}
    drafts = []
    for plan in plans:
        places = {i: positions[_identity(source)] for i, source in enumerate(plan.sources)}
        drafts.append(_rebase(plan, places, stages, interned, behind=len(sources)))
    names = [source.label for source in sources.values()]
    names += [str(found.name) for _, found in stages.values()]
    return Union(
        sources=tuple(sources.values()),
        stages=tuple(
            Terms(name=own.name, seed=own.seed, nan=own.nan, labels=own.named(names))
            for _, own in stages.values()
        ),
        plans=tuple(
            RebasedPlan(units=units, seed=own.seed, nan=own.nan, labels=own.named(names))
            for units, own in drafts
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Own:
    """A stage's terms, with the labels of its own plan's sources and stages alone."""

    name: str | None
    seed: int
    nan: NanPolicy
    labels: tuple[tuple[int, str], ...]
    """Each with a position in the union."""

    def named(self, names: Sequence[str]) -> tuple[str, ...]:
        """Labels of the whole union; `names` are those of what is not its own."""
        return tuple((dict(enumerate(names)) | dict(self.labels)).values())


def _identity(source: PlannedSource) -> object:
    return source.location, source.revision, tuple(sorted(source.pins.items()))


def _rebase(
    plan: Plan,
    places: dict[int, int],
    stages: dict[object, tuple[int, _Own]],
    interned: _Interned,
    *,
    behind: int,
) -> tuple[tuple[Unit, ...], _Own]:
    """A plan's units, and what it is merged under."""
    moved = _Moved(places, interned)
    for number, stage in enumerate(plan.stages):
        nodes = [moved.walk(node) for node in stage.nodes]
        inner = _placed(terms(stage.recipe, plan.recipe, plan.sources), places)
        key = inner, tuple(map(id, nodes))
        position, _ = stages.setdefault(key, (len(stages), inner))
        places[len(plan.sources) + number] = behind + position
        moved.stages[number] = position
    if plan.stages:
        own = terms(plan.recipe, plan.recipe, plan.sources)
    else:
        labels = tuple(source.label for source in plan.sources)
        own = Terms(name=None, seed=plan.recipe.seed, nan=plan.recipe.nan, labels=labels)
    return tuple(moved.walk(unit) for unit in plan.units), _placed(own, places)


def _placed(found: Terms, places: Mapping[int, int]) -> _Own:
    # Stages that stand behind this one have no place yet, and it has no use for them.
    labels = tuple((places[i], label) for i, label in enumerate(found.labels) if i in places)
    return _Own(name=found.name, seed=found.seed, nan=found.nan, labels=labels)


_Key = tuple[object, ...]


class _Interned:
    """One object for all equal ones, whose parts are interned already."""

    def __init__(self) -> None:
        self._objects: dict[_Key, Any] = {}
        self.entries: dict[int, TensorEntry] = {}
        """What became of entries, by identity: plans have them from the same catalogs."""

    def one(self, parts: _Key, make: Callable[[], T]) -> T:
        """The object of these parts: of a type, then values."""
        key = tuple(map(_key, parts))
        if key not in self._objects:
            self._objects[key] = make()
        found: T = self._objects[key]
        return found


def _key(part: object) -> object:
    if isinstance(part, float):
        return float, repr(part)  # 0.0 equals -0.0, and a merge may not
    if _is_leaf(part):
        return type(part), part
    return id(part)


_LEAVES: dict[type, bool] = {}
"""By type: a union of a hundred plans asks for millions of values."""


def _is_leaf(value: object) -> bool:
    kind = type(value)
    if kind not in _LEAVES:
        _LEAVES[kind] = issubclass(kind, str | int | float | bytes | Enum | type | NoneType)
    return _LEAVES[kind]


class _Moved:
    """One plan's objects, rebuilt over the union's positions."""

    def __init__(self, places: Mapping[int, int], interned: _Interned) -> None:
        self.stages: dict[int, int] = {}
        """From a stage's position in the plan to that in the union."""
        self._places = places
        self._interned = interned
        self._walked: dict[int, Any] = {}

    def walk(self, value: T) -> T:
        """The same over the union; the plan has to stay as long as this."""
        if _is_leaf(value):
            return value
        found = self._walked.get(id(value))
        if found is None:
            found = self._walked[id(value)] = self._rebuilt(value)
        result: T = found
        return result

    def _rebuilt(self, value: Any) -> Any:
        if isinstance(value, TensorEntry):
            known = self._interned.entries
            if id(value) not in known:
                known[id(value)] = self._like(value)
            return known[id(value)]
        if isinstance(value, tuple):
            members = tuple(map(self.walk, value))
            return self._interned.one((type(value), *members), lambda: members)
        if is_dataclass(value):
            return self._like(value)
        # Knobs and the like: plain mappings of plain values.
        return self._interned.one((type(value), repr(value)), lambda: value)

    def _like(self, value: Any) -> Any:
        parts = [self._part(value, name) for name in _names(type(value))]
        return self._interned.one((type(value), *parts), lambda: _like(value, parts))

    def _part(self, value: Any, name: str) -> Any:
        part = getattr(value, name)
        if name == "source" and isinstance(value, Read | Derived):
            return self._places[part]
        if name == "stage" and isinstance(value, Merged):
            return self.stages[part]
        return self.walk(part)


_NAMES: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in fields(kind))
    return _NAMES[kind]


def _like(value: Any, parts: Iterable[Any]) -> Any:
    return type(value)(**dict(zip(_names(type(value)), parts, strict=True)))


def recut(plan: Plan, like: Plan) -> Plan:
    """A plan whose units are those of another of the same layout."""
    nodes: dict[str, TensorNode] = {node.slot.name: node for node in plan.nodes}
    units = tuple(
        replace(unit, nodes=tuple(nodes[node.slot.name] for node in unit.nodes))
        for unit in like.units
    )
    return replace(plan, units=units)
