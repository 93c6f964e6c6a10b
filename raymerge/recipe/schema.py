"""The recipe's JSON Schema for editors, generated from the method registry.

Of a recipe of several documents it describes each.

It knows keys, types, ranges and each method's knobs. What it cannot say is left to `load`: counts
of models once the base is taken out, models listed twice, required knobs, a knob given both at the
top level and under `parameters`, `trim: model` with a density that varies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymerge.methods import methods
from raymerge.recipe.dialect import MERGEKIT_KNOBS
from raymerge.recipe.parameters import SHORTHANDS
from raymerge.recipe.parse import DTYPES, NUM_SEEDS

if TYPE_CHECKING:
    from raymerge.methods.registry import Knob, Method

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_PATTERNS: Schema = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}],
    "description": "Shell-style globs over the whole tensor name, such as *.mtp.*",
}


def json_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a recipe."""
    known = methods()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raymerge recipe",
        "type": "object",
        "required": ["merge_method", "models"],
        "additionalProperties": False,
        "properties": {
            "merge_method": {"enum": list(known), "description": "See `raymerge methods`."},
            "models": {"type": "array", "minItems": 1, "items": _entry()},
            "base_model": {"anyOf": [_reference("label"), {"type": "null"}]},
            "parameters": {"type": ["object", "null"]},
            "dtype": _dtype("Precision of the output; sums are float32 whatever it says."),
            "out_dtype": _dtype("Precision of the output; wins over dtype."),
            "seed": {"type": "integer", "minimum": 0, "maximum": NUM_SEEDS - 1, "default": 0},
            "drop": {**_PATTERNS, "title": "Tensors left out of the output"},
            "keep": {**_PATTERNS, "title": "Tensors copied byte for byte from the donor"},
            "nan": {"enum": ["error", "pass"], "default": "error"},
            "name": {
                "description": "Of a document among several: what others call its result. Else "
                "without effect."
            },
            **dict.fromkeys(SHORTHANDS, True),
        },
        "allOf": [_method_rules(method) for method in known.values()],
    }


def knob_schema(knob: Knob) -> Schema:
    """Everything that may stand under a knob's name: a value, a gradient, conditions."""
    scalar = _scalar(knob)
    if knob.kind is None:
        return scalar
    value = scalar
    if knob.kind is not bool:
        value = {"anyOf": [scalar, {"type": "array", "items": _number(knob), "minItems": 1}]}
    condition = {
        "type": "object",
        "required": ["value"],
        "additionalProperties": False,
        "properties": {
            "value": value,
            "filter": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Part of a tensor name; null or * is every tensor.",
            },
        },
    }
    conditions = {"type": "array", "items": condition, "minItems": 1}
    return {"anyOf": [value, condition, conditions]}


def _scalar(knob: Knob) -> Schema:
    forms: list[Schema] = [{"enum": list(knob.choices)}] if knob.choices else []
    if knob.kind is bool:
        forms.append({"enum": [True, False, 0, 1]})
    elif knob.kind is not None:
        forms.append(_number(knob))
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _number(knob: Knob) -> Schema:
    number: Schema = {"type": "integer" if knob.kind is int else "number"}
    if knob.limits and math.isfinite(knob.limits.lower):
        number["minimum"] = knob.limits.lower
    if knob.limits and math.isfinite(knob.limits.upper):
        number["maximum"] = knob.limits.upper
    return number


def _method_rules(method: Method) -> Schema:
    """What holds once `merge_method` is this one."""
    idle = dict.fromkeys(sorted(MERGEKIT_KNOBS - set(method.knobs)), True)
    knobs = {
        name: {**knob_schema(knob), **({} if knob.required else {"default": knob.default})}
        for name, knob in method.knobs.items()
    }
    # A shared knob under a model has no effect, as in mergekit, so its value is not looked at.
    own = {name: knobs[name] if knob.per_source else True for name, knob in method.knobs.items()}
    properties: Schema = {
        "parameters": _closed({**idle, **knobs}),
        "models": {"items": {"properties": {"parameters": _closed({**idle, **own})}}},
        **{name: knobs.get(name, name in MERGEKIT_KNOBS) for name in SHORTHANDS},
    }
    rules: Schema = {"properties": properties}
    if method.needs_base:
        rules["required"] = ["base_model"]
        properties["base_model"] = {"not": {"type": "null"}}
    return {
        "if": {
            "properties": {"merge_method": {"const": method.name}},
            "required": ["merge_method"],
        },
        "then": rules,
    }


def _closed(properties: Schema) -> Schema:
    return {
        "type": ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }


def _dtype(description: str) -> Schema:
    names = [*DTYPES, *(f"torch.{name}" for name in DTYPES)]
    return {"enum": [*names, None], "description": description}


def _entry() -> Schema:
    return _reference("label", "parameters")


def _reference(*extra: str) -> Schema:
    """A model: a string, or a mapping with the given keys beside the location's."""
    location: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "model": {"anyOf": [_TEXT, {"type": "object"}]},
            "path": _TEXT,
            "revision": {"type": ["string", "null"]},
            # mergekit writes these keys out even where they are not used.
            "lora": {"type": "null"},
            "override_architecture": {"type": "null"},
        },
        "oneOf": [{"required": ["model"]}, {"required": ["path"]}],
    }
    if "label" in extra:
        location["properties"]["label"] = _TEXT
    if "parameters" in extra:
        location["properties"]["parameters"] = {"type": ["object", "null"]}
    return {"anyOf": [{**_TEXT, "description": "path, URL, or org/name@revision"}, location]}
