"""The parts of a recipe: what is merged from sources, and under parameters, of its own.

A recipe of `models` is one section. `slices` are a section each, and so is what stands under each
name of `modules`, or each slice there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymerge.recipe.model import SourceRef
    from raymerge.recipe.resolve import KnobSettings


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers of a source, as the recipe gives them: half-open, counted from 0."""

    start: int
    stop: int
    line: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A whole model, a module of it, or a slice of either."""

    sources: tuple[SourceRef, ...]
    """What per-source knobs apply to, in recipe order."""
    base: SourceRef | None
    """The model that task vectors are taken from, where the recipe gives one."""
    settings: tuple[KnobSettings, ...]
    """What the recipe says about each knob of the method."""
    line: int
    module: str | None = None
    """The module's name as written; None in a recipe without modules."""
    ranges: Mapping[str, LayerRange] | None = None
    """The layers of each source, base included, by label; all of one length. None where every
    layer is merged where it stands."""
