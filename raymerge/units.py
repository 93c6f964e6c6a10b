"""Bytes as people write them: `"8GiB"` <-> 8589934592."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**i for i, prefix in enumerate("kmgtp", start=1)},
    **{f"{prefix}ib": 1024**i for i, prefix in enumerate("kmgtp", start=1)},
}
_STEP = 1024
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read a size such as `5GB` (decimal), `8GiB` (binary) or `1048576`.

    Raises:
        ValueError: The text is not a number with a known unit.

    >>> parse_bytes("8GiB"), parse_bytes("1.5 kB"), parse_bytes("7")
    (8589934592, 1500, 7)
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _FACTORS:
        raise ValueError(f"{text!r} is not a size; write bytes with a unit, such as 5GB or 8GiB")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def format_bytes(size_bytes: int) -> str:
    """Write a size with the binary unit that keeps it below 1024, one decimal.

    >>> format_bytes(1023), format_bytes(9_900_000_000)
    ('1023 B', '9.2 GiB')
    """
    if size_bytes < _STEP:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= _STEP
        if size < _STEP:
            return f"{size:.1f} {unit}"
    return f"{size / _STEP:.1f} PiB"
