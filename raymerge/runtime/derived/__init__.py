"""Inputs that are worked out as they are read: a file for each kind of `plan.graph.Derived`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from raymerge.plan.adapted import Adapted, Replaced
from raymerge.plan.dequantised import Dequantised
from raymerge.plan.experts import Joined
from raymerge.plan.graph import Derived
from raymerge.plan.memory import Budget
from raymerge.plan.merged import Merged
from raymerge.plan.remapped import Remapped
from raymerge.runtime.derived.adapted import AdaptedFiller, ReplacedFiller
from raymerge.runtime.derived.dequantised import DequantisedFiller
from raymerge.runtime.derived.joined import JoinedFiller
from raymerge.runtime.derived.merged import merged_filler
from raymerge.runtime.derived.remapped import RemappedFiller
from raymerge.runtime.readers import Filler, Readers

FILLERS: Mapping[type[Derived], Callable[[Any, Readers], Filler]] = {
    Adapted: AdaptedFiller,
    Dequantised: DequantisedFiller,
    Joined: JoinedFiller,
    Remapped: RemappedFiller,
    Replaced: ReplacedFiller,
}
"""What fills buffers for each kind, made from the input and the open files."""


def derived_filler(one: Derived, readers: Readers, budget: Budget | None = None) -> Filler:
    """What fills buffers with the bytes of a derived input, for the calling thread.

    Args:
        one: The input.
        readers: The open files.
        budget: What the merge of a stage's result may use; None holds nothing between sweeps.
    """
    if isinstance(one, Merged):
        return merged_filler(one, readers, budget)
    return FILLERS[type(one)](one, readers)
