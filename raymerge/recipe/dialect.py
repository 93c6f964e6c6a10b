"""What mergekit's dialect has that means nothing here: accepted, and listed as without effect.

A knob of some other method has none there either.
"""

from __future__ import annotations

_KNOBS = """
weight density gamma epsilon lambda normalize rescale int8_mask t scale nuslerp_flatten
nuslerp_row_wise normalize_weights eps max_iter tol filter_wise select_topk r alpha random_seed
"""
MERGEKIT_KNOBS = frozenset(_KNOBS.split())
IDLE_SOURCE_KEYS = ("override_architecture",)
"""Under a model: tensors are matched by name here, whatever the architecture is called."""
