"""What mergekit's dialect has that raymerge lacks, so that a recipe is never misread in silence.

A knob of some other mergekit method is accepted and listed as having no effect, as it has none
there; a key or a method that would change the result is refused.
"""

from __future__ import annotations

_METHODS = """
linear slerp nuslerp multislerp karcher passthrough model_stock arcee_fusion nearswap sce ram
ramplus_tl task_arithmetic ties dare_ties dare_linear breadcrumbs breadcrumbs_ties della
della_linear
"""
_KNOBS = """
weight density gamma epsilon lambda normalize rescale int8_mask t scale nuslerp_flatten
nuslerp_row_wise normalize_weights eps max_iter tol filter_wise select_topk r alpha random_seed
"""
MERGEKIT_METHODS = frozenset(_METHODS.split())
MERGEKIT_KNOBS = frozenset(_KNOBS.split())
MERGEKIT_SOURCE_KEYS = {
    "override_architecture": "reading a model as another architecture",
}
