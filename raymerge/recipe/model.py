"""A recipe after reading: nothing left to check, no default left to fill in."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from raymerge.methods import Method, methods
from raymerge.methods.registry import Over
from raymerge.recipe.resolve import Knobs, depths, make_resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from raymerge.checkpoint.dtypes import DType
    from raymerge.recipe.chat_templates import ChatTemplate
    from raymerge.recipe.section import Section
    from raymerge.recipe.tokenizer_keys import TokenizerPolicy

NanPolicy = Literal["error", "pass"]
ExpertLayout = Literal["donor", "separate", "packed"]

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
    adapter: SourceRef | None = None
    """A LoRA adapter that is added to it, a checkpoint of its own."""

    @property
    def identity(self) -> SourceRef:
        """Equal for two mentions of one checkpoint, whatever they call it."""
        adapter = self.adapter and self.adapter.identity
        location = os.path.normpath(self.location)
        return replace(self, label="", location=location, line=0, adapter=adapter)

    def relabelled(self, label: str) -> SourceRef:
        """The same checkpoint under another label."""
        adapter = self.adapter and replace(self.adapter, label=f"{label} adapter")
        return replace(self, label=label, adapter=adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to merge, how, and into which precision."""

    path: str
    text: str
    """The YAML as read."""
    method: Method
    sources: tuple[SourceRef, ...]
    """Whatever is merged in any section, in recipe order."""
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
    sections: tuple[Section, ...]
    """One for a recipe of `models`; else one a slice, or one a module without slices."""
    tokenizer: TokenizerPolicy | None = None
    """Which vocabulary the output gets; None is the donor's, which all sources have to share."""
    chat_template: ChatTemplate | None = None
    """None is the donor's."""
    experts: ExpertLayout = "donor"
    """How a mixture's experts are stored in the output, and so what a density counts within."""
    out: str | None = None
    """Where a sweep writes it; the command's OUT wins in a merge."""
    name: str | None = None
    """What other stages call its result, in a recipe of several."""
    results: frozenset[str] = frozenset()
    """Locations among its sources that are names of other stages, whose results are meant."""
    stages: tuple[Recipe, ...] = ()
    """Of the stage whose result is written: all others, each behind those that it uses."""

    def over(self, section: Section) -> Over:
        """Which vectors the method combines in a section, with or without the base it has."""
        return self.method.over.resolve(has_base=section.base is not None)

    @property
    def donor(self) -> SourceRef:
        """Whose config and tokenizer the output gets: the base, else the first source."""
        return self.base or self.sections[0].base or self.sources[0]

    @property
    def whole(self) -> bool:
        """Whether all tensors are merged from the same sources, each layer where it stands."""
        first = self.sections[0]
        return first.module is None and first.ranges is None

    @property
    def all_sources(self) -> tuple[SourceRef, ...]:
        """Every source of this stage, bases first that are not among the others."""
        bases = dict.fromkeys((self.base, *(section.base for section in self.sections)))
        apart = [base for base in bases if base is not None and base not in self.sources]
        return (*apart, *self.sources)

    @property
    def adapters(self) -> tuple[SourceRef, ...]:
        """The adapters that are added to `checkpoints`, in the same order."""
        return tuple(ref.adapter for ref in self.checkpoints if ref.adapter)

    @property
    def lenders(self) -> tuple[SourceRef, ...]:
        """What is not merged and gives the output something else: here a tokenizer, or nothing."""
        outside = self.tokenizer and self.tokenizer.outside
        return (outside,) if outside else ()

    @property
    def read(self) -> tuple[SourceRef, ...]:
        """Whatever is opened: checkpoints, then adapters, then lenders."""
        return (*self.checkpoints, *self.adapters, *self.lenders)

    def resolver(self, names: Iterable[str]) -> Callable[[str], Knobs]:
        """A function from a tensor name of the first section to its knobs, equal ones one object.

        Args:
            names: Every tensor of the section. They say how many layers each stack has, which is
                where gradients stretch.

        Raises:
            RecipeError: From the function returned, for a tensor that no condition of a required
                knob matches.
        """
        return make_resolver(self.sections[0].settings, lambda: depths(names))

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
            ref if taken[ref.label] == 1 else ref.relabelled(f"{ref.label}#{position}")
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
        return self.lent(self.donor, self)

    def lent(self, ref: SourceRef, stage: Recipe) -> SourceRef:
        """The checkpoint whose config and tokenizer a source of a stage comes with."""
        by_name = {each.name: each for each in self.stages}
        while ref.location in stage.results:
            stage = by_name[ref.location]
            ref = stage.donor
        wanted = ref.identity
        return next(each for each in self.checkpoints if each.identity == wanted)

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
