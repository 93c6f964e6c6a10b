"""JSON objects as the safetensors library would take them: Python's parser takes more.

`json.loads` keeps the last of two equal keys and lets half a surrogate pair through; two readers of
such a file see two different checkpoints, so here it is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from raymerge.errors import SourceError


def parse_object(raw: bytes, *, file: str, source: str) -> dict[str, Any]:
    """Read a JSON object in which no key occurs twice, at any depth.

    Raises:
        SourceError: Not UTF-8, not JSON, not an object, nested too deep, or a repeated key.
    """
    try:
        text = raw.decode()
        parsed = json.loads(text, object_pairs_hook=_without_repeats)
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode()
    except RecursionError:
        raise _refusal("its JSON is nested too deep", file=file, source=source) from None
    except UnicodeDecodeError as error:
        raise _refusal(f"it is not UTF-8 (byte {error.start})", file=file, source=source) from None
    except UnicodeEncodeError:
        why = "a string escapes half a surrogate pair"
        raise _refusal(why, file=file, source=source) from None
    except ValueError as error:
        # Besides malformed text: a repeated key, and integers of more digits than Python converts.
        raise _refusal(f"it is not valid JSON: {error}", file=file, source=source) from None
    return _as_object(parsed, file=file, source=source)


def parse_config(raw: bytes, *, file: str, source: str) -> dict[str, Any]:
    """Read a JSON object as transformers does: `Infinity` is a number, the last equal key counts.

    Raises:
        SourceError: Not UTF-8, not JSON or not an object.
    """
    try:
        parsed = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _refusal(f"it is not valid JSON: {error}", file=file, source=source) from None
    return _as_object(parsed, file=file, source=source)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return unique


def _as_object(parsed: Any, *, file: str, source: str) -> dict[str, Any]:
    if not isinstance(parsed, dict):
        why = f"it holds a JSON {type(parsed).__name__}, not an object"
        raise _refusal(why, file=file, source=source)
    return parsed


def _refusal(why: str, *, file: str, source: str) -> SourceError:
    return SourceError(
        f"{source}: {file} cannot be read: {why}; fetch or write the file again",
        source=source,
        file=file,
    )
