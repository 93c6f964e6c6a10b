"""The JSON Schema says what `load` says, as far as a schema can."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from raymerge.errors import RecipeError
from raymerge.methods import methods
from raymerge.recipe import loads
from raymerge.recipe.schema import json_schema

VALIDATOR = jsonschema.Draft202012Validator(json_schema())

TIES: dict[str, Any] = {"merge_method": "ties", "base_model": "b", "models": ["a"]}
GIVEN: dict[str, Any] = {**TIES, "parameters": {"weight": 1}}

GOOD: list[dict[str, Any]] = [
    GIVEN,
    {**GIVEN, "trim": "model", "rescale": "l1", "dtype": "torch.bfloat16", "out_dtype": None},
    {**GIVEN, "seed": 7, "drop": "*.mtp.*", "keep": ["a", "b"], "nan": "pass", "name": "x"},
    {**TIES, "parameters": {"weight": [0, 1], "density": [{"value": [0, 0.5], "filter": "mlp"}]}},
    {**TIES, "parameters": {"weight": {"value": 1, "filter": None}, "normalize": 1}},
    {**TIES, "parameters": {"weight": 1, "int8_mask": True, "epsilon": "anything"}},
    {**TIES, "models": [{"model": "a", "label": "x", "parameters": {"weight": 1, "gamma": 3}}]},
    {**TIES, "models": [{"model": "a", "parameters": {"weight": 1, "normalize": "ignored"}}]},
    {**GIVEN, "models": [{"path": "a", "revision": "v1"}, {"model": {"path": "c"}, "lora": None}]},
    {**GIVEN, "base_model": {"path": "b", "label": "original"}},
    {"merge_method": "linear", "models": ["a", "c"], "parameters": {"weight": 1, "density": 3}},
    {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1}, "rescale": True},
    {"merge_method": "slerp", "base_model": "a", "models": ["b"], "parameters": {"t": [0, 1]}},
    {"merge_method": "passthrough", "models": ["a"]},
]
TAKE = {"model": "a", "layer_range": [0, 2]}
"""A source of a slice."""
FRANKEN: dict[str, Any] = {"merge_method": "passthrough"}
GOOD += [
    {**FRANKEN, "slices": [{"sources": [TAKE]}, {"sources": [TAKE], "residual_weight": 1}]},
    {**FRANKEN, "slices": [{"sources": [{**TAKE, "parameters": {"scale": [0, 1]}}]}], "models": []},
    {**FRANKEN, "modules": {"text": {"slices": [{"sources": [TAKE], "parameters": None}]}}},
    {**FRANKEN, "modules": {"text": {"models": ["a"], "parameters": {"scale": 0.5}}, "b": {
        "models": ["a"]}}, "slices": None},
    {"merge_method": "task_arithmetic", "parameters": {"weight": 1}, "slices": [
        {"sources": [TAKE, {**TAKE, "model": "b"}], "base_model": "b"}]},
]  # fmt: skip
FROM_A = {"kind": "model_token", "model": {"path": "a"}, "token_id": 3}
GOOD += [
    {**GIVEN, "tokenizer_source": "union", "chat_template": "auto"},
    {**GIVEN, "tokenizer_source": {"model": {"path": "org/c", "revision": "v2"}}},
    {**GIVEN, "tokenizer": {"source": {"path": "a"}, "tokens": {"x": {"source": FROM_A}}}},
    {**GIVEN, "tokenizer": {"tokens": {"x": {"source": {"model": "a"}}, "y": {"force": True}}}},
    {**GIVEN, "tokenizer": {"source": None, "tokens": {"x": {"source": {"kind": "zero"}}}}},
]
BAD: list[dict[str, Any]] = [
    {**GIVEN, "tokenizer_source": {"revision": "v2"}},
    {**GIVEN, "tokenizer_source": ["union"]},
    {**GIVEN, "tokenizer": {"tokens": {"x": {"source": {**FROM_A, "token": "y"}}}}},
    {**GIVEN, "tokenizer": {"tokens": {"x": {"source": {"kind": "nothing"}}}}},
    {**FRANKEN, "models": ["a"], "slices": [{"sources": [TAKE]}]},
    {**FRANKEN, "slices": [{"sources": ["a"]}]},
    {**FRANKEN, "slices": [{"sources": [{"model": "a"}]}]},
    {**FRANKEN, "slices": [{"sources": [{**TAKE, "layer_range": [0]}]}]},
    {**FRANKEN, "slices": [{"sources": [{**TAKE, "layer_range": [-1, 2]}]}]},
    {**FRANKEN, "slices": [{"sources": [{**TAKE, "layer_range": [0, 1.5]}]}]},
    {**FRANKEN, "slices": [{"sources": []}]},
    {**FRANKEN, "slices": [{"sources": [TAKE], "layer_range": [0, 2]}]},
    {**FRANKEN, "slices": [{"sources": [TAKE], "parameters": {"scael": 1}}]},
    {**FRANKEN, "slices": [{"sources": [{**TAKE, "parameters": {"scael": 1}}]}]},
    {**FRANKEN, "modules": {"text": ["a"]}},
    {**FRANKEN, "modules": {"text": {}}},
    {**FRANKEN, "modules": {"text": {"models": ["a"], "slices": [{"sources": [TAKE]}]}}},
    {**FRANKEN, "modules": {"text": {"models": ["a"], "base_model": "a"}}},
    {**FRANKEN, "modules": {"text": {"models": ["a"], "parameters": {"scael": 1}}}},
    {**GIVEN, "dtpye": "float16"},
    {**GIVEN, "dtype": "bf16"},
    {**GIVEN, "seed": -1},
    {**GIVEN, "drop": []},
    {**GIVEN, "nan": "ignore"},
    {**GIVEN, "slices": [1]},
    {**GIVEN, "models": []},
    {**GIVEN, "models": [{"model": "a", "paramaters": {}}]},
    {**GIVEN, "models": [{"label": "a"}]},
    {**GIVEN, "models": [{"model": "a", "path": "a"}]},
    {**GIVEN, "merge_method": "teis"},
    {**GIVEN, "trim": ["tensor"]},
    {**TIES, "parameters": {"weight": 1, "density": 20}},
    {**TIES, "parameters": {"weight": 1, "density": [0, 2]}},
    {**TIES, "parameters": {"weight": 1, "density": {"value": 2}}},
    {**TIES, "parameters": {"weight": 1, "normalize": [True, False]}},
    {**TIES, "parameters": {"weight": "1"}},
    {**TIES, "parameters": {"weight": []}},
    {**TIES, "parameters": {"weight": {"value": 1, "fliter": "mlp"}}},
    {**TIES, "parameters": {"weight": 1, "densty": 0.5}},
    {**TIES, "models": [{"model": "a", "parameters": {"wieght": 1}}]},
    {"merge_method": "ties", "models": ["a"], "parameters": {"weight": 1}},
    {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1, "trim": "model"}},
    {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1}, "trim": "model"},
    {"models": ["a"]},
]


def test_the_schema_is_itself_valid_and_is_json() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(json.dumps(json_schema())))


@pytest.mark.parametrize("recipe", GOOD, ids=json.dumps)
def test_a_good_recipe_passes_the_schema_and_loads(recipe: dict[str, Any]) -> None:
    VALIDATOR.validate(recipe)
    loads(json.dumps(recipe))


@pytest.mark.parametrize("recipe", BAD, ids=json.dumps)
def test_a_bad_recipe_fails_the_schema_and_does_not_load(recipe: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(recipe)
    with pytest.raises(RecipeError):
        loads(json.dumps(recipe))


def test_every_method_and_every_knob_is_in_the_schema() -> None:
    schema = json_schema()
    rules = {rule["if"]["properties"]["merge_method"]["const"]: rule for rule in schema["allOf"]}
    assert list(rules) == list(methods()) == schema["properties"]["merge_method"]["enum"]
    for name, method in methods().items():
        parameters = rules[name]["then"]["properties"]["parameters"]["properties"]
        assert set(method.knobs) <= set(parameters)
        defaults = {key: parameters[key].get("default") for key in method.knobs}
        assert defaults == {key: knob.default for key, knob in method.knobs.items()}
