"""From settings to the knobs of one tensor: precedence, filters, gradients.

For every knob the settings stand in a chain, highest first: the source's own `parameters`
(per-source knobs only), then the recipe's. The first clause that matches the tensor's name decides;
where none does, the method's default.

A gradient is read at t = index / (layers - 1). Nothing here knows an architecture: the first
all-digit component of a dotted name is its layer index, what stands before it names the stack, and
the stack has as many layers as its largest index says. A stack of one layer is read at t = 1, a
tensor outside any stack (embeddings, final norm, head) at t = 0. Both are mergekit's rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymerge.methods.registry import Knob, KnobValue

if TYPE_CHECKING:
    from raymerge.errors import RecipeError
    from raymerge.recipe.settings import Clause, Setting

Knobs = Mapping[str, KnobValue | tuple[KnobValue, ...]]
"""Resolved knobs of one tensor, by the registry's names; per-source knobs are tuples."""
Distinct = dict[tuple[KnobValue | tuple[KnobValue, ...], ...], Knobs]
"""Knobs by their values."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The settings of a knob for one source, or of a shared knob, highest precedence first."""

    knob: Knob
    owner: str
    """Label of the source, or empty for a shared knob."""
    settings: tuple[Setting, ...]

    @property
    def clauses(self) -> Iterator[Clause]:
        """All clauses in the order they are tried."""
        return (clause for setting in self.settings for clause in setting.clauses)

    def value(self, name: str, t: float) -> KnobValue:
        """What the tensor `name`, at the relative depth `t`, gets."""
        for clause in self.clauses:
            if clause.matches(name):
                return interpolate(self.knob, clause.anchors, t)
        if self.knob.default is None:
            raise self._unmatched(name)
        return self.knob.default

    def _unmatched(self, name: str) -> RecipeError:
        whose = f" of source {self.owner!r}" if self.owner else ""
        return self.settings[-1].place.error(
            f"{self.knob.name}{whose}: no condition matches tensor {name}, and there is no "
            "default; add a condition without a filter",
            tensor=name,
            source=self.owner or None,
        )


@dataclass(frozen=True, slots=True)
class KnobSettings:
    """All that a recipe says about one knob: a chain per source, or one if it is shared."""

    knob: Knob
    chains: tuple[Chain, ...]

    def value(
        self, name: str, t: float, own: Sequence[str] = ()
    ) -> KnobValue | tuple[KnobValue, ...]:
        """The value, or for a per-source knob the values in the order of the sources.

        Args:
            name: The tensor's name in the output, which conditions of shared knobs are held to.
            t: Its relative depth.
            own: Its name in each source, which conditions of per-source knobs are held to; empty
                where it is the output's.
        """
        if not self.knob.per_source:
            return self.chains[0].value(name, t)
        names = own or [name] * len(self.chains)
        return tuple(chain.value(at, t) for chain, at in zip(self.chains, names, strict=True))


def interpolate(knob: Knob, anchors: tuple[KnobValue, ...], t: float) -> KnobValue:
    """A gradient at `t` from 0 to 1, linear between neighbours; a whole-number knob rounds."""
    x = t * (len(anchors) - 1)
    index = min(int(x), len(anchors) - 1)
    lower, upper = anchors[index], anchors[min(index + 1, len(anchors) - 1)]
    if isinstance(lower, str) or isinstance(upper, str) or x == index:
        return lower
    # Rounding can step past a neighbour by one unit in the last place, and so out of the range.
    value = lower + (upper - lower) * (x - index)
    value = min(max(value, min(lower, upper)), max(lower, upper))
    return round(value) if knob.kind is int else value


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack and the index of a tensor's layer, None outside any stack."""
    components = name.split(".")
    for position, component in enumerate(components):
        if component.isdigit() and component.isascii():
            return ".".join(components[:position]), int(component)
    return None


def depths(names: Iterable[str]) -> Callable[[str], float]:
    """A function from a tensor name to its relative depth `t` in the stacks that `names` span."""
    last: dict[str, int] = {}
    for layer in map(layer_of, names):
        if layer is not None:
            last[layer[0]] = max(layer[1], last.get(layer[0], 0))

    def depth(name: str) -> float:
        layer = layer_of(name)
        if layer is None:
            return 0.0
        stack, index = layer
        return index / last[stack] if last[stack] else 1.0

    return depth


def make_resolver(
    settings: tuple[KnobSettings, ...],
    stretch: Callable[[], Callable[[str], float]],
    own_names: Callable[[str], Sequence[str]] | None = None,
    distinct: Distinct | None = None,
) -> Callable[[str], Knobs]:
    """A function from a tensor name to its knobs; equal knobs are one object.

    A large mixture of experts has 90,000 tensors and its recipe a handful of distinct answers, so
    an answer is worked out once for each combination of matching filters and depth.

    Args:
        settings: What the recipe says about each knob.
        stretch: Makes the function from a tensor name to its depth; called where a gradient is.
        own_names: From an output's tensor name to its name in each source, where they differ.
        distinct: Shared by resolvers whose equal knobs are to be one object.
    """
    clauses = [clause for entry in settings for chain in entry.chains for clause in chain.clauses]
    filters = sorted({clause.filter for clause in clauses if clause.filter is not None})
    graded = any(len(clause.anchors) > 1 for clause in clauses)
    depth = stretch() if graded else lambda _: 0.0
    seen: dict[tuple[tuple[bool, ...], float], Knobs] = {}
    found: Distinct = {} if distinct is None else distinct

    def resolve(name: str) -> Knobs:
        own = own_names(name) if own_names and filters else ()
        key = tuple([text in one for one in (name, *own) for text in filters]), depth(name)
        if key not in seen:
            knobs = {entry.knob.name: entry.value(name, key[1], own) for entry in settings}
            seen[key] = found.setdefault(tuple(knobs.values()), knobs)
        return seen[key]

    return resolve
