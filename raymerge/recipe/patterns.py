"""Tensor-name patterns of `drop:` and `keep:`.

A pattern is a shell-style glob over the whole tensor name, case-sensitive: `*` is any run of
characters, dots included, `?` one character, `[0-3]` one of a set. `*.mtp.*` is every tensor with a
component `mtp` inside its name; `lm_head.weight` is that tensor alone.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import lru_cache


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether any of the patterns covers the whole of `name`."""
    return bool(patterns) and _compiled(patterns).match(name) is not None


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))
