"""The turns of phrase that error messages share."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence ` Did you mean 'density'?`, or nothing if no known word is close."""
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""


def listed(words: Iterable[str]) -> str:
    """`a, b, c` in alphabetical order."""
    return ", ".join(sorted(words))
