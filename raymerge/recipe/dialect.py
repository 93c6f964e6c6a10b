"""What mergekit's dialect has that means nothing here: accepted, and listed as without effect.

A knob of some other method has none there either. Where no knob stands one is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from raymerge.methods import methods

if TYPE_CHECKING:
    from raymerge.recipe.document import Fields

_KNOBS = """
weight density gamma epsilon lambda normalize rescale int8_mask t scale nuslerp_flatten
nuslerp_row_wise normalize_weights eps max_iter tol filter_wise select_topk r alpha random_seed
"""
MERGEKIT_KNOBS = frozenset(_KNOBS.split())
IDLE_SOURCE_KEYS = ("override_architecture",)
"""Under a model: tensors are matched by name here, whatever the architecture is called."""


def refuse_stray_knobs(fields: Fields, known: Collection[str]) -> None:
    """Raise RecipeError for a knob that stands beside `parameters` and not under it.

    Args:
        fields: A recipe, or an entry of its models.
        known: Keys that it may have.
    """
    ours = frozenset[str]().union(*(method.knobs for method in methods().values()))
    for key, field in fields.fields.items():
        if key in known:
            continue
        if key in ours:
            raise field.place.error(
                f"{key}: a knob, and knobs stand under parameters; write parameters: {{{key}: ...}}"
            )
        if key in MERGEKIT_KNOBS:
            raise field.place.error(f"{key}: has no effect here, wherever it stands; leave it out")
