"""The recipe's JSON Schema for editors, generated from the method registry.

Of a recipe of several documents it describes each.

It knows keys, types, ranges and each method's knobs. What it cannot say is left to `load`: counts
of models once the base is taken out, models listed twice, ranges of layers that hold none or differ
in length, required knobs, a knob given both at the top level and under `parameters`, `trim: model`
with a density that varies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from raymerge.methods import methods
from raymerge.recipe.chat_templates import AUTO, BUILTIN
from raymerge.recipe.dialect import MERGEKIT_KNOBS
from raymerge.recipe.parameters import SHORTHANDS
from raymerge.recipe.parse import DTYPES, NUM_SEEDS
from raymerge.recipe.tokenizer_keys import UNION

if TYPE_CHECKING:
    from raymerge.methods.registry import Knob, Method

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_FORMS: dict[str, Schema] = {
    "models": {"type": "array", "minItems": 1},
    "slices": {"type": "array", "minItems": 1},
    "modules": {"type": "object", "minProperties": 1},
}
"""The ways to list what is merged, and what each is when it says something."""
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
        "required": ["merge_method"],
        "oneOf": list(map(_given, _FORMS)),
        "additionalProperties": False,
        "properties": {
            "merge_method": {"enum": list(known), "description": "See `raymerge methods`."},
            "models": {"type": ["array", "null"], "items": _entry()},
            "slices": {"type": ["array", "null"], "items": _slice()},
            "modules": {"type": ["object", "null"], "additionalProperties": _module()},
            "base_model": {"anyOf": [_reference("label"), {"type": "null"}]},
            "parameters": {"type": ["object", "null"]},
            "dtype": _dtype("Precision of the output; sums are float32 whatever it says."),
            "out_dtype": _dtype("Precision of the output; wins over dtype."),
            "seed": {"type": "integer", "minimum": 0, "maximum": NUM_SEEDS - 1, "default": 0},
            "drop": {**_PATTERNS, "title": "Tensors left out of the output"},
            "keep": {**_PATTERNS, "title": "Tensors copied byte for byte from the donor"},
            "nan": {"enum": ["error", "pass"], "default": "error"},
            "experts": {"enum": ["donor", "separate", "packed"], "default": "donor"},
            **_tokenizer_keys(),
            "name": {
                "description": "Of a document among several: what others call its result. Else "
                "without effect."
            },
            "out": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Where `raymerge sweep` writes it.",
            },
            **dict.fromkeys(SHORTHANDS, True),
        },
        "allOf": [_method_rules(method) for method in known.values()],
    }


def _tokenizer_keys() -> Schema:
    whole = {"type": ["integer", "null"], "minimum": 1}
    model_token = {
        "type": "object",
        "required": ["kind", "model"],
        "additionalProperties": False,
        "properties": {
            "kind": {"const": "model_token"},
            "model": _reference(),
            "token": _TEXT,
            "token_id": {"type": "integer", "minimum": 0},
        },
        "oneOf": [{"required": ["token"]}, {"required": ["token_id"]}],
    }
    zero = {
        "type": "object",
        "required": ["kind"],
        "additionalProperties": False,
        "properties": {"kind": {"const": "zero"}},
    }
    token = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "source": {"anyOf": [_reference(), {"type": "null"}, zero, model_token]},
            "force": {"type": ["boolean", "null"]},
        },
    }
    policy = {
        "anyOf": [_reference(), {"type": "null"}],
        "description": "union, base or a model",
    }
    return {
        "tokenizer_source": policy,
        "tokenizer": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "source": {**policy, "default": UNION},
                "tokens": {"type": ["object", "null"], "additionalProperties": token},
                "pad_to_multiple_of": whole,
            },
        },
        "chat_template": {
            **_TEXT,
            "type": ["string", "null"],
            "description": f"{', '.join([AUTO, *BUILTIN])}, or a jinja template",
        },
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
    shared: Schema = {"parameters": _closed({**idle, **knobs})}
    entries: Schema = {"items": {"properties": {"parameters": _closed({**idle, **own})}}}
    inner: Schema = {
        "models": entries,
        "slices": {"items": {"properties": {**shared, "sources": entries}}},
    }
    properties: Schema = {
        **shared,
        **inner,
        "modules": {"additionalProperties": {"properties": {**shared, **inner}}},
        **{name: knobs.get(name, name in MERGEKIT_KNOBS) for name in SHORTHANDS},
    }
    rules: Schema = {"properties": properties}
    if method.needs_base:
        based = {
            "required": ["base_model"],
            "properties": {"base_model": {"not": {"type": "null"}}},
        }
        # A slice may have a base of its own.
        rules["anyOf"] = [based, _given("slices"), _given("modules")]
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


def _given(form: str) -> Schema:
    return {"required": [form], "properties": {form: _FORMS[form]}}


def _slice() -> Schema:
    source = _reference("label", "parameters")["anyOf"][1]
    bound = {"type": "integer", "minimum": 0}
    source["properties"]["layer_range"] = {
        "type": "array",
        "items": bound,
        "minItems": 2,
        "maxItems": 2,
        "description": "First layer, and one past the last.",
    }
    source["required"] = ["layer_range"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["sources"],
        "properties": {
            "sources": {"type": "array", "minItems": 1, "items": source},
            "base_model": {"anyOf": [_reference("label"), {"type": "null"}]},
            "parameters": {"type": ["object", "null"]},
            "residual_weight": {"description": "Has no effect."},
            "merge_method": {"description": "The recipe's, if it is given here at all."},
        },
    }


def _module() -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [_given("models"), _given("slices")],
        "properties": {
            "models": {"type": ["array", "null"], "items": _entry()},
            "slices": {"type": ["array", "null"], "items": _slice()},
            "parameters": {"type": ["object", "null"]},
        },
    }


def _reference(*extra: str) -> Schema:
    """A model: a string, or a mapping with the given keys beside the location's."""
    location: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "model": {"anyOf": [_TEXT, {"type": "object"}]},
            "path": _TEXT,
            "revision": {"type": ["string", "null"]},
            "lora": {
                "anyOf": [{"type": ["string", "null"], "minLength": 1}, {"type": "object"}],
                "description": "A LoRA adapter to add: path, org/name@revision, or a mapping with "
                "path and revision",
            },
            "override_architecture": {
                "type": ["string", "null"],
                "description": "Has no effect.",
            },
        },
        "oneOf": [{"required": ["model"]}, {"required": ["path"]}],
    }
    if "label" in extra:
        location["properties"]["label"] = _TEXT
    if "parameters" in extra:
        location["properties"]["parameters"] = {"type": ["object", "null"]}
    return {"anyOf": [{**_TEXT, "description": "path, URL, or org/name@revision"}, location]}
