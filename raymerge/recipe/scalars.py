"""Plain YAML scalars, read by YAML 1.2's core schema instead of PyYAML's YAML 1.1.

written   1.1      1.2
1e-5      '1e-5'   1e-05     a learning-rate-sized knob must not become a string
010       8        10
1:30      90       '1:30'
1_000     1000     '1_000'
no        False    'no'      nor a model called `no` a boolean
"""

from __future__ import annotations

import re

ScalarValue = bool | int | float | str | None

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED_INT = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

# Python refuses to read an int of more than 4300 digits; no knob or seed needs more than these.
_MAX_INT_DIGITS = 64


def read_plain(text: str) -> ScalarValue:
    """The value of an unquoted scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    number = _read_number(text)
    return text if number is None else number


def _read_number(text: str) -> float | None:
    if _INT.fullmatch(text) and len(text) <= _MAX_INT_DIGITS:
        return int(text)
    if _BASED_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else None
