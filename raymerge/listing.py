"""Methods as text: what `raymerge methods` prints."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from raymerge.errors import RecipeError
from raymerge.methods import Knob, Method, methods
from raymerge.methods.registry import Over

_BASE = {
    Over.SOURCES: "one more source",
    Over.BASE_AND_SOURCES: "required",
    Over.DELTAS: "required",
    Over.DELTAS_IF_BASE: "optional",
}
"""What a base is to a method."""


def listing() -> str:
    """Every method: name, what it takes, its knobs with their defaults, its paper."""
    rows = [("method", "sources", "base", "knobs", "paper")]
    for method in methods().values():
        knobs = ", ".join(map(_short, method.knobs.values()))
        base = _BASE[method.over]
        rows.append((method.name, _sources(method), base, knobs, method.paper))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe(name: str) -> str:
    """One method: its documentation and its knobs."""
    method = _find(name)
    knobs = "\n".join(
        f"  {knob.name}: {knob.allowed}; {_given(knob)}" for knob in method.knobs.values()
    )
    return (
        f"{method.name} ({method.paper})\n\n{method.doc}\n\nIn a recipe:\n{knobs or '  no knobs'}"
    )


def listing_json(name: str | None) -> list[dict[str, Any]]:
    """Every method, or the one named, for programs."""
    chosen = [_find(name)] if name else list(methods().values())
    return [_method_json(method) for method in chosen]


def _find(name: str) -> Method:
    known: Mapping[str, Method] = methods()
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    raise RecipeError(f"no method is called {name!r}; {hint}")


def _method_json(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "family": str(method.family),
        "paper": method.paper,
        "base": {"one more source": "source"}.get(_BASE[method.over], _BASE[method.over]),
        "min_sources": method.min_sources,
        "max_sources": method.max_sources,
        "knobs": [
            {
                "name": knob.name,
                "allowed": knob.allowed,
                "per_source": knob.per_source,
                "required": knob.required,
                "default": knob.default,
            }
            for knob in method.knobs.values()
        ],
    }


def _sources(method: Method) -> str:
    if method.min_sources == method.max_sources:
        return str(method.min_sources)
    return f"{method.min_sources}+"


def _short(knob: Knob) -> str:
    return knob.name if knob.required else f"{knob.name}={_value(knob.default)}"


def _given(knob: Knob) -> str:
    whose = "one per source" if knob.per_source else "one for all"
    return f"{whose}, " + ("required" if knob.required else f"default {_value(knob.default)}")


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
