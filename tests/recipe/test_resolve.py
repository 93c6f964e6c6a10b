"""From settings to one tensor's knobs, against a slow reading of the rules."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.errors import RecipeError
from raymerge.methods.registry import Knob
from raymerge.recipe import Knobs, Recipe, loads
from raymerge.recipe.resolve import depths, interpolate, layer_of

NAMES = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def names(num_layers: int) -> list[str]:
    layers = [
        f"model.layers.{index}.{part}.weight"
        for index in range(num_layers)
        for part in ("mlp.up_proj", "self_attn.q_proj")
    ]
    return [*NAMES, *layers]


def slerp(t: object) -> Recipe:
    return loads(
        json.dumps(
            {"merge_method": "slerp", "base_model": "a", "models": ["b"], "parameters": {"t": t}}
        ),
        path="r.yaml",
    )


def t_by_layer(t: object, num_layers: int) -> list[object]:
    resolve = slerp(t).resolver(names(num_layers))
    return [resolve(f"model.layers.{index}.mlp.up_proj.weight")["t"] for index in range(num_layers)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.experts.3.w", ("model.layers", 12)),
        ("model.embed_tokens.weight", None),
        ("0.weight", ("", 0)),
        ("h.00.w", ("h", 0)),
        ("layers.x1.w", None),
        ("layers.1a.w", None),
        ("layers.\u00b2.w", None),
    ],
)
def test_the_first_all_digit_component_is_the_layer(
    name: str, layer: tuple[str, int] | None
) -> None:
    assert layer_of(name) == layer


def test_each_stack_has_its_own_depth() -> None:
    depth = depths(["text.layers.0.w", "text.layers.4.w", "vision.blocks.2.w", "mtp.0.w", "norm"])
    assert [depth(f"text.layers.{index}.w") for index in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert depth("vision.blocks.1.w") == 0.5
    assert depth("mtp.0.w") == 1.0
    assert depth("norm") == 0.0


def test_a_gradient_runs_linearly_from_the_first_layer_to_the_last() -> None:
    assert t_by_layer([0, 0.5, 1], 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert t_by_layer([0, 1, 0], 3) == [0.0, 1.0, 0.0]
    assert t_by_layer([0, 1], 4) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert t_by_layer([0.3], 4) == [0.3] * 4


def test_tensors_outside_the_layers_get_the_first_value() -> None:
    resolve = slerp([0.25, 1]).resolver(names(4))
    assert [resolve(name)["t"] for name in NAMES] == [0.25] * 3


def test_a_stack_of_one_layer_gets_the_last_value() -> None:
    assert t_by_layer([0, 0.5, 0.75], 1) == [0.75]


def test_a_filter_is_a_substring_so_layer_1_is_layer_10_too() -> None:
    values = t_by_layer([{"filter": "layers.1", "value": 1}, {"value": 0}], 12)
    assert [index for index, value in enumerate(values) if value] == [1, 10, 11]


def test_a_whole_number_gradient_rounds() -> None:
    knob = Knob(
        name="max_iter",
        kind=int,
        per_source=False,
        limits=None,
        choices=(),
        required=True,
        default=None,
    )
    values = [interpolate(knob, (1, 4), t / 6) for t in range(7)]
    assert values == [1, 2, 2, 2, 3, 4, 4]
    assert all(type(value) is int for value in values)


def test_precedence_is_source_then_recipe_then_default() -> None:
    recipe = loads(
        json.dumps(
            {
                "merge_method": "ties",
                "base_model": "base",
                "models": [
                    {"model": "a", "parameters": {"density": {"value": 0.1, "filter": "mlp"}}},
                    "b",
                ],
                "parameters": {"weight": 1, "density": {"value": 0.2, "filter": "layers"}},
            }
        )
    )
    resolve = recipe.resolver(names(2))
    assert resolve("model.layers.0.mlp.up_proj.weight")["density"] == (0.1, 0.2)
    assert resolve("model.layers.0.self_attn.q_proj.weight")["density"] == (0.2, 0.2)
    assert resolve("lm_head.weight")["density"] == (1.0, 1.0)


@pytest.mark.parametrize("owner", ["a", ""])
def test_a_required_knob_that_nothing_matches_is_an_error_naming_tensor_and_line(
    owner: str,
) -> None:
    only_mlp = "{value: 1, filter: mlp}"
    text = (
        f"merge_method: linear\nmodels:\n- model: a\n  parameters: {{weight: {only_mlp}}}\n"
        if owner
        else f"merge_method: slerp\nbase_model: b\nmodels: [a]\nparameters: {{t: {only_mlp}}}\n"
    )
    resolve = loads(text, path="r.yaml").resolver(names(2))
    assert resolve("model.layers.0.mlp.up_proj.weight")
    with pytest.raises(RecipeError) as caught:
        resolve("lm_head.weight")
    subject = "weight of source 'a'" if owner else "t"
    assert str(caught.value) == (
        f"r.yaml:4: {subject}: no condition matches tensor lm_head.weight, and there is no "
        "default; add a condition without a filter"
    )
    assert (caught.value.tensor, caught.value.source) == ("lm_head.weight", owner or None)


def test_equal_knobs_are_one_object_however_they_came_about() -> None:
    same = [
        {"filter": "mlp", "value": 0.5},
        {"filter": "attn", "value": [0.5, 0.5]},
        {"value": [0.5, 0.25]},
    ]
    resolve = slerp(same).resolver(names(8))
    assert len({id(resolve(name)) for name in names(8)}) == 1
    assert resolve("model.layers.7.norm.weight")["t"] == 0.25


def test_ninety_thousand_tensors_are_resolved_within_two_seconds() -> None:
    experts = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(60)
        for expert in range(500)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    recipe = slerp(
        [{"filter": "gate", "value": [0, 0.5, 1]}, {"filter": "up", "value": 1}, {"value": 0}]
    )
    start = time.perf_counter()
    resolve = recipe.resolver(experts)
    distinct = {id(resolve(name)) for name in experts}
    assert time.perf_counter() - start < 2
    assert len(distinct) == 60


# The oracle: the dossier's sentences, one after another, on the recipe's plain data.

NUMBERS = st.floats(-2, 2).map(lambda value: round(value, 3))
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=5))
FILTERS = st.sampled_from([None, "*", "mlp", "layers.1", "self_attn", "norm", "nothing"])
CONDITIONS = st.fixed_dictionaries({"value": VALUES}, optional={"filter": FILTERS})
SETTINGS = st.one_of(VALUES, CONDITIONS, st.lists(CONDITIONS, min_size=1, max_size=3))
PARAMETERS = st.fixed_dictionaries({}, optional={"weight": SETTINGS, "lambda": SETTINGS})


def oracle_lookup(setting: Any, name: str, t: float) -> float | None:
    conditional = isinstance(setting, dict) or (
        isinstance(setting, list) and isinstance(setting[0], dict)
    )
    if conditional:
        for condition in setting if isinstance(setting, list) else [setting]:
            wanted = condition.get("filter")
            if wanted in (None, "*") or wanted in name:
                return oracle_lookup(condition["value"], name, t)
        return None
    if isinstance(setting, list):
        return float(np.interp(t * (len(setting) - 1), range(len(setting)), setting))
    return float(setting)


def oracle(levels: list[dict[str, Any]], knob: str, name: str, num_layers: int) -> float | None:
    t = 0.0
    if "layers" in name:
        index = int(name.split(".")[2])
        t = 1.0 if num_layers == 1 else index / (num_layers - 1)
    for level in levels:
        if knob in level:
            found = oracle_lookup(level[knob], name, t)
            if found is not None:
                return found
    return 1.0 if knob == "lambda" else None


@settings(deadline=None)
@given(
    shared=PARAMETERS,
    own=st.tuples(PARAMETERS, PARAMETERS),
    num_layers=st.integers(1, 12),
    data=st.data(),
)
def test_resolution_agrees_with_the_rules_read_one_by_one(
    shared: dict[str, Any],
    own: tuple[dict[str, Any], dict[str, Any]],
    num_layers: int,
    data: st.DataObject,
) -> None:
    shared = {"weight": {"value": 9, "filter": "never"}, **shared}
    recipe = loads(
        json.dumps(
            {
                "merge_method": "task_arithmetic",
                "base_model": "base",
                "models": [
                    {"model": label, "parameters": level}
                    for label, level in zip("ab", own, strict=True)
                ],
                "parameters": shared,
            }
        )
    )
    resolve = recipe.resolver(iter(names(num_layers)))
    name = data.draw(st.sampled_from(names(num_layers)))
    weights = [oracle([level, shared], "weight", name, num_layers) for level in own]
    if None in weights:
        with pytest.raises(RecipeError, match=f"no condition matches tensor {name}"):
            resolve(name)
        return
    knobs: Knobs = resolve(name)
    assert knobs["weight"] == pytest.approx(weights)
    assert knobs["lambda"] == pytest.approx(oracle([shared], "lambda", name, num_layers))
    assert resolve(name) is knobs


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 200), st.data())
def test_a_gradient_never_leaves_the_range_of_its_anchors(
    anchors: list[float], num_layers: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, num_layers - 1))
    (value,) = {t_by_layer(anchors, num_layers)[index]}
    assert isinstance(value, float)
    assert min(anchors) <= value <= max(anchors)
