"""How a plan's facts are set: in columns, long lists cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MAX_NAMES = 3


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows whose cells line up; a column that is empty in every row takes no room."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width
        ).rstrip()
        for row in table
    ]
