"""JSON Schema of recipes with a `sweep:` block: what `raymerge methods --schema` prints.

With a block, a text with `$name` may stand wherever a single value may. A recipe of several
documents has its block in one of them, and the schema takes `$name` in that one alone. What it
cannot say is left to the sweep: axes that are used nowhere, what `search` and `path` go
together with, placeholders of a command, what values come to.
"""

from __future__ import annotations

from typing import Any

from raymerge.recipe.parse import NUM_SEEDS
from raymerge.recipe.schema import json_schema as recipe_schema
from raymerge.sweep import search
from raymerge.sweep.axes import MAX_TRIALS
from raymerge.sweep.path import MAX_POINTS, POINTS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
_SCALAR: Schema = {"type": ["number", "string", "boolean"]}
_NUMBER: Schema = {"type": "number"}
_ABOVE: Schema = {"type": "number", "exclusiveMinimum": 0}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_OPEN: Schema = {"type": "string", "pattern": r"\$"}
"""Where an axis, or arithmetic over axes, stands."""
_SCALARS = {"string", "number", "integer", "boolean"}


def json_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a recipe with or without a sweep block."""
    closed = recipe_schema()
    head = {key: closed.pop(key) for key in ("$schema", "title")}
    opened = _opened(closed)
    opened["properties"]["sweep"] = block_schema()
    # greedy_soup and path say what is merged themselves.
    del opened["required"], opened["oneOf"]
    ready = {"properties": {"sweep": {"anyOf": [_given("greedy_soup"), _given("path")]}}}
    whole = {key: closed[key] for key in ("required", "oneOf")}
    return {
        **head,
        "if": {"type": "object", "required": ["sweep"]},
        "then": {"allOf": [opened, {"if": ready, "else": whole}]},
        "else": closed,
    }


def block_schema() -> Schema:
    """JSON Schema of what stands under `sweep`."""
    tasks = {"type": "array", "items": _TEXT, "minItems": 2}
    return _mapping(
        {
            "axes": {
                "type": "object",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "minProperties": 1,
                "additionalProperties": _axis(),
                "description": "Values of what the recipe leaves open; used as $name.",
            },
            "sample": _mapping({"n": _upto(MAX_TRIALS), "seed": _seed(NUM_SEEDS)}, "n"),
            "search": _search(),
            "greedy_soup": _mapping(
                {"models": {"type": "array", "minItems": 2, "items": _model()}}, "models"
            ),
            "path": _path(),
            "evaluate": _evaluate(),
            "gates": _by_task(_NUMBER, "The least that a kept trial scores."),
            "at_least": _by_task(
                _mapping({"of": _TEXT, "minus": {**_NUMBER, "minimum": 0}}, "of"),
                "How far a trial may stay below what a source scores.",
            ),
            "by": {
                "anyOf": [_TEXT, _by_task(_NUMBER, "Weights."), _mapping({"pareto": tasks})],
                "default": "mean",
            },
            "subset": {"anyOf": [_sizes(), _mapping({"sizes": _sizes(), "go_on": _part()})]},
            "split": _mapping({"search": _TEXT, "final": _TEXT}, "search", "final"),
            "keep": {**_COUNT, "description": "How many trials keep their weights."},
            "scratch": {**_TEXT, "description": "Where candidates lie until they are kept."},
        },
        allOf=[_one_of("axes", "greedy_soup", "path"), {"not": _given("sample", "search")}],
    )


def _axis() -> Schema:
    numbers = {"type": "array", "items": _NUMBER}
    whole = {"type": "array", "items": {"type": "integer"}}
    values = {"type": "array", "items": _SCALAR, "minItems": 1, "uniqueItems": True}
    forms: dict[str, Schema] = {
        "linspace": {**numbers, "minItems": 3, "maxItems": 3},
        "geomspace": {**numbers, "minItems": 3, "maxItems": 3},
        "range": {**whole, "minItems": 2, "maxItems": 3},
        "choice": values,
        "uniform": {**numbers, "minItems": 2, "maxItems": 2},
        "log_uniform": {**numbers, "minItems": 2, "maxItems": 2},
        "int": {**whole, "minItems": 2, "maxItems": 2},
    }
    return {"anyOf": [values, _mapping(forms, minProperties=1, maxProperties=1)]}


def _search() -> Schema:
    return _mapping(
        {
            "sampler": {"enum": list(search.SAMPLERS), "default": "tpe"},
            "trials": _upto(MAX_TRIALS),
            "round": {**_upto(MAX_TRIALS), "description": "Trials merged with one read."},
            "seed": _seed(search.NUM_SEEDS),
        },
        "trials",
    )


def _path() -> Schema:
    return _mapping(
        {
            "from": _model(),
            "to": _model(),
            "points": {"type": "integer", "minimum": 2, "maximum": MAX_POINTS, "default": POINTS},
            "along": {"enum": ["line", "arc"], "default": "line"},
        },
        "from",
        "to",
    )


def _evaluate() -> Schema:
    harness = _mapping(
        {
            "tasks": _TEXTS,
            "metrics": _by_task(_TEXT, "Where it is not a task's usual one."),
            "limit": _COUNT,
            "model_args": {"type": "object", "additionalProperties": _SCALAR},
            "num_fewshot": _SCALAR,
            "batch_size": _SCALAR,
            "max_batch_size": _SCALAR,
            "device": _SCALAR,
            "apply_chat_template": _SCALAR,
        },
        "tasks",
    )
    command = {"type": "array", "items": _SCALAR, "minItems": 1}
    return _mapping(
        {
            "command": {
                "anyOf": [{**_TEXT, "pattern": r"\{checkpoint\}"}, command],
                "description": "With {checkpoint}, {subset}, {split}; prints scores as JSON.",
            },
            "python": {**_TEXT, "pattern": ":", "description": "module:function, file.py:function"},
            "lm_eval": harness,
            "limit_s": _ABOVE,
            "cpus": _ABOVE,
            "gpus": {
                **_NUMBER,
                "minimum": 0,
                "anyOf": [{"exclusiveMaximum": 1}, {"multipleOf": 1}],
            },
            "tasks": _TEXTS,
        },
        allOf=[_one_of("command", "python", "lm_eval")],
    )


def _model() -> Schema:
    """As an entry of `models`."""
    found: Schema = recipe_schema()["properties"]["models"]["items"]
    return found


def _mapping(properties: Schema, *required: str, **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _by_task(value: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": value, "description": description}


def _sizes() -> Schema:
    return {"type": "array", "items": _COUNT, "minItems": 1}


def _part() -> Schema:
    return {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


def _upto(most: int) -> Schema:
    return {**_COUNT, "maximum": most}


def _seed(number: int) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": number - 1, "default": 0}


def _given(*keys: str) -> Schema:
    return {"required": list(keys)}


def _one_of(*keys: str) -> Schema:
    return {"oneOf": list(map(_given, keys))}


def _opened(schema: Any) -> Any:
    """The same schema where `$name` may also stand for a single value."""
    if isinstance(schema, list):
        return list(map(_opened, schema))
    if not isinstance(schema, dict):
        return schema
    if _is_single(schema):
        return {"anyOf": [schema, _OPEN]}
    # Conditions say which method's rules hold: an open method has none.
    return {key: value if key == "if" else _opened(value) for key, value in schema.items()}


def _is_single(schema: Schema) -> bool:
    kinds = schema.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    return "enum" in schema or "const" in schema or bool(kinds & _SCALARS)
