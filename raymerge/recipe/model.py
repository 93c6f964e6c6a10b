"""A recipe after reading: nothing left to check, no default left to fill in."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from raymerge.methods import Method, methods
from raymerge.recipe.resolve import Knobs, KnobSettings, make_resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymerge.checkpoint.dtypes import DType

NanPolicy = Literal["error", "pass"]

__all__ = ["Knobs", "NanPolicy", "Recipe", "SourceRef"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRef:
    """A checkpoint that a recipe names."""

    label: str
    """What messages, reports and random draws call it; no two sources of a recipe share one."""
    location: str
    """Path, URL or repository, as written."""
    revision: str | None
    line: int

    @property
    def identity(self) -> SourceRef:
        """Equal for two mentions of one checkpoint, whatever they call it."""
        return replace(self, label="", location=os.path.normpath(self.location), line=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to merge, how, and into which precision."""

    path: str
    text: str
    """The YAML as read."""
    method: Method
    sources: tuple[SourceRef, ...]
    """What per-source knobs apply to, in recipe order."""
    base: SourceRef | None
    dtype: DType | None
    """Precision of the output; None keeps what each tensor's sources promote to."""
    seed: int
    drop: tuple[str, ...]
    """Patterns (`raymerge.recipe.patterns`) of tensors left out of the output."""
    keep: tuple[str, ...]
    """Patterns of tensors copied byte for byte from the donor."""
    nan: NanPolicy
    """What becomes of a NaN in a source."""
    no_effect: tuple[str, ...]
    """What the recipe says to no effect, a line each: mergekit would not tell."""
    settings: tuple[KnobSettings, ...]
    """What the recipe says about each knob of the method; `resolver` reads it."""
    name: str | None = None
    """What other stages call its result, in a recipe of several."""
    results: frozenset[str] = frozenset()
    """Locations among its sources that are names of other stages, whose results are meant."""
    stages: tuple[Recipe, ...] = ()
    """Of the stage whose result is written: all others, each behind those that it uses."""

    @property
    def donor(self) -> SourceRef:
        """Whose config and tokenizer the output gets: the base, else the first source."""
        return self.base or self.sources[0]

    @property
    def all_sources(self) -> tuple[SourceRef, ...]:
        """Every source of this stage, the base first unless it is one of the sources."""
        if self.base is None or self.base in self.sources:
            return self.sources
        return (self.base, *self.sources)

    def resolver(self, names: Iterable[str]) -> Callable[[str], Knobs]:
        """A function from a tensor name to its knobs; equal knobs are the same object.

        Args:
            names: Every tensor of the output. They say how many layers each stack has, which is
                where gradients stretch.

        Raises:
            RecipeError: From the function returned, for a tensor that no condition of a required
                knob matches.
        """
        return make_resolver(self.settings, names)

    @property
    def checkpoints(self) -> tuple[SourceRef, ...]:
        """Every checkpoint to read over all stages, each once and with a label of its own.

        Labels are those of the stages as long as no two checkpoints share one.
        """
        found: dict[SourceRef, SourceRef] = {}
        for stage in (*self.stages, self):
            for ref in stage.all_sources:
                if ref.location not in stage.results:
                    found.setdefault(ref.identity, ref)
        taken = Counter(ref.label for ref in found.values())
        taken.update(stage.name for stage in self.stages if stage.name)
        return tuple(
            ref if taken[ref.label] == 1 else replace(ref, label=f"{ref.label}#{position}")
            for position, ref in enumerate(found.values(), start=1)
        )

    @property
    def lineage(self) -> tuple[Recipe, ...]:
        """This stage, its donor where that is a stage, and so on to one with a checkpoint's."""
        by_name = {stage.name: stage for stage in self.stages}
        line = [self]
        while line[-1].donor.location in line[-1].results:
            line.append(by_name[line[-1].donor.location])
        return tuple(line)

    @property
    def lender(self) -> SourceRef:
        """The checkpoint whose config and tokenizer the output gets."""
        donor = self.lineage[-1].donor.identity
        return next(ref for ref in self.checkpoints if ref.identity == donor)

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with this seed in every stage."""
        return replace(
            self, seed=seed, stages=tuple(replace(stage, seed=seed) for stage in self.stages)
        )

    def __reduce__(self) -> tuple[Callable[..., Recipe], tuple[str, dict[str, Any]]]:
        # A method travels by name: its entry holds a read-only mapping, which pickle refuses.
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return _rebuild, (state.pop("method").name, state)


def _rebuild(method: str, state: dict[str, Any]) -> Recipe:
    return Recipe(method=methods()[method], **state)
