"""Slices and modules as a recipe writes them: who takes part, with which knobs."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from raymerge.errors import RecipeError
from raymerge.recipe import Recipe, loads
from raymerge.recipe.section import LayerRange


def take(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": model, "layer_range": [start, stop]}
    return {**entry, **({"parameters": parameters} if parameters else {})}


def read(method: str, slices: list[dict[str, Any]], **top: Any) -> Recipe:
    return loads(json.dumps({"merge_method": method, "slices": slices, **top}), path="r.yaml")


def knobs(recipe: Recipe, section: int, knob: str) -> Any:
    entry = next(e for e in recipe.sections[section].settings if e.knob.name == knob)
    return entry.value("model.norm.weight", 0.0)


def test_a_slice_is_a_section_with_the_layers_of_each_source() -> None:
    recipe = read(
        "linear",
        [{"sources": [take("x/a", 0, 2), take("b", 4, 6)]}, {"sources": [take("x/a", 1, 4)]}],
        parameters={"weight": 1},
    )
    assert not recipe.whole
    assert [[ref.label for ref in section.sources] for section in recipe.sections] == [
        ["a", "b"],
        ["a"],
    ]
    assert recipe.sections[0].ranges == {"a": LayerRange(0, 2, 1), "b": LayerRange(4, 6, 1)}
    assert [ref.label for ref in recipe.all_sources] == ["a", "b"]
    assert recipe.donor.label == "a"
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_the_nearest_parameters_win() -> None:
    def weights(*levels: str) -> Any:
        of = dict(zip(("source", "slice", "module", "top"), (1.0, 2.0, 3.0, 4.0), strict=True))
        given = {level: {"parameters": {"weight": of[level]}} for level in levels}
        source = {"model": "a", "layer_range": [0, 2], **given.get("source", {})}
        inner = {"slices": [{"sources": [source], **given.get("slice", {})}]}
        module = {"text": {**inner, **given.get("module", {})}}
        document = {"merge_method": "linear", "modules": module, **given.get("top", {})}
        return knobs(loads(json.dumps(document)), 0, "weight")

    assert weights("source", "slice", "module", "top") == (1.0,)
    assert weights("slice", "module", "top") == (2.0,)
    assert weights("module", "top") == (3.0,)
    assert weights("top") == (4.0,)


def test_a_level_is_passed_over_where_its_conditions_do_not_match() -> None:
    own = [{"filter": "mlp", "value": 1}]
    recipe = read(
        "linear",
        [{"sources": [take("a", 0, 2, weight=own)], "parameters": {"weight": 2}}],
        parameters={"weight": 3},
    )
    (entry,) = (e for e in recipe.sections[0].settings if e.knob.name == "weight")
    assert entry.value("x.mlp.w", 0.0) == (1.0,)
    assert entry.value("x.attn.w", 0.0) == (2.0,)


def test_a_shared_knob_may_stand_at_the_slice_and_not_under_its_sources() -> None:
    sources = [take("a", 0, 2), take("b", 0, 2, t=0.9)]
    recipe = read(
        "slerp",
        [{"sources": sources, "parameters": {"t": 0.25}}],
        base_model="a",
        parameters={"t": 0.5},
    )
    assert knobs(recipe, 0, "t") == 0.25
    assert recipe.no_effect == (
        "r.yaml:1: t has no effect under a model: slerp takes it from the top-level parameters",
    )


def test_what_is_said_once_is_noted_once() -> None:
    slices = [{"sources": [take("a", 0, 2)]}, {"sources": [take("b", 0, 2)]}]
    recipe = read("passthrough", slices, parameters={"density": 0.5})
    assert recipe.no_effect == ("r.yaml:1: density has no effect on passthrough",)


def test_a_slices_own_base_wins() -> None:
    slices: list[dict[str, Any]] = [
        {"sources": [take("base", 0, 2), take("a", 0, 2)]},
        {"sources": [take("other", 0, 2), take("a", 2, 4)], "base_model": "other"},
    ]
    recipe = read("task_arithmetic", slices, base_model="base", parameters={"weight": 1})
    bases = [section.base.label for section in recipe.sections if section.base]
    assert bases == ["base", "other"]
    assert [[ref.label for ref in s.sources] for s in recipe.sections] == [["a"], ["a"]]
    assert [ref.label for ref in recipe.all_sources] == ["base", "other", "a"]
    assert recipe.donor.label == "base"


def test_slices_with_bases_of_their_own_need_none_at_the_top() -> None:
    sources = [take("base", 0, 2), take("a", 0, 2)]
    base = {"model": "base", "label": "original"}
    slices: list[dict[str, Any]] = [{"sources": sources, "base_model": base}]
    recipe = read("task_arithmetic", slices, parameters={"weight": 1})
    assert recipe.base is None
    assert recipe.donor.label == "original"


def test_a_base_that_no_slice_lists_gives_its_config_and_nothing_else() -> None:
    recipe = read("passthrough", [{"sources": [take("a", 0, 2)]}], base_model="base")
    assert [ref.label for ref in recipe.sources] == ["a"]
    assert [ref.label for ref in recipe.all_sources] == ["base", "a"]
    assert recipe.donor.label == "base"


def test_keys_of_a_slice_that_nothing_looks_at_are_noted() -> None:
    own = {"residual_weight": 0.5, "base_model": "b", "merge_method": "passthrough"}
    slices = [{"sources": [take("a", 0, 2)], **own}]
    recipe = read("passthrough", slices)
    assert recipe.no_effect == (
        "r.yaml:1: residual_weight has no effect, nor has it in mergekit",
        "r.yaml:1: base_model of a slice has no effect on passthrough",
    )
    assert [ref.label for ref in recipe.all_sources] == ["a"]


def test_labels_hold_for_all_mentions() -> None:
    named = {**take("x/a", 2, 4), "label": "first"}
    slices = [
        {"sources": [take("x/a", 0, 2)]},
        {"sources": [named]},
        {"sources": [take("a", 0, 1)]},
    ]
    recipe = read("passthrough", slices)
    assert [ref.label for ref in recipe.all_sources] == ["first", "a"]
    named_again = {**take("x/a", 2, 4), "label": "second"}
    with pytest.raises(RecipeError, match=r"label: 'second' here, 'first' on line 1; they are one"):
        read("passthrough", [{"sources": [named]}, {"sources": [named_again]}])


def test_a_module_of_models_is_a_section_and_counts_its_base() -> None:
    modules = {"text": {"models": ["a"], "parameters": {"weight": 2}}, "vision": {"models": ["b"]}}
    document = {"merge_method": "linear", "base_model": "base", "modules": modules}
    recipe = loads(json.dumps({**document, "parameters": {"weight": 1}}))
    assert [section.module for section in recipe.sections] == ["text", "vision"]
    assert [[ref.label for ref in s.sources] for s in recipe.sections] == [
        ["a", "base"],
        ["b", "base"],
    ]
    assert knobs(recipe, 0, "weight") == (2.0, 2.0)
    assert knobs(recipe, 1, "weight") == (1.0, 1.0)


PASS = "merge_method: passthrough\n"
SLICE = PASS + "slices:\n- sources:\n  - {model: a, layer_range: %s}\n"
TIES = "merge_method: ties\nparameters: {weight: 1}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SLICE % "[4, 2]",
            (
                "4: layer_range is [4, 2], which holds no layer; it is [first layer, one past the "
                "last]. Did you mean [2, 4]?"
            ),
        ),
        (
            SLICE % "[2, 2]",
            (
                "4: layer_range is [2, 2], which holds no layer; it is [first layer, one past the "
                "last]."
            ),
        ),
        (
            SLICE % "[-1, 2]",
            (
                "4: layer_range is [-1, 2]; allowed: two whole numbers from 0, [first layer, one "
                "past the last]"
            ),
        ),
        (
            SLICE % "[0, 1, 2]",
            (
                "4: layer_range is [0, 1, 2]; allowed: two whole numbers from 0, [first layer, one "
                "past the last]"
            ),
        ),
        (
            SLICE % "[0, x]",
            (
                "4: layer_range is [0, 'x']; allowed: two whole numbers from 0, [first layer, one "
                "past the last]"
            ),
        ),
        (
            SLICE % "[true, 2]",
            (
                "4: layer_range is [true, 2]; allowed: two whole numbers from 0, [first layer, one "
                "past the last]"
            ),
        ),
        (
            SLICE % "4",
            (
                "4: layer_range is 4; allowed: two whole numbers from 0, [first layer, one past"
                " the last]"
            ),
        ),
        (
            SLICE % "null",
            (
                "4: layer_range: missing; a source of a slice needs the layers to take, such as "
                "layer_range: [0, 16] for the first sixteen"
            ),
        ),
        (
            PASS + "slices: [{sources: [a]}]\n",
            (
                "2: layer_range: missing; a source of a slice needs the layers to take, such as "
                "layer_range: [0, 16] for the first sixteen"
            ),
        ),
        (
            (
                "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
                "  - {model: b, layer_range: [0, 3]}\n"
            ),
            (
                "5: layer_range: 3 layers, and 2 in the one on line 4; all sources of a slice give "
                "the same number"
            ),
        ),
        (
            (
                "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
                "  - {model: ./a, layer_range: [1, 3]}\n"
            ),
            "5: model: './a' is listed twice, first on line 4; a slice takes each model once",
        ),
        (
            PASS + "slices: [a]\n",
            (
                "2: a slice is 'a'; allowed: a mapping such as "
                "{sources: [{model: ..., layer_range: [0, 8]}]}"
            ),
        ),
        (PASS + "slices: 3\n", "2: slices is 3; allowed: a list of slices"),
        (PASS + "slices:\n- sources: []\n", "3: sources: missing; list the models to merge"),
        (
            PASS + "slices:\n- source: []\n",
            (
                "3: source: a slice has no such key; allowed: base_model, merge_method, "
                "parameters, residual_weight, sources. Did you mean 'sources'?"
            ),
        ),
        (
            PASS
            + "slices:\n- merge_method: linear\n  sources: [{model: a, layer_range: [0, 1]}]\n",
            (
                "3: merge_method: linear in one slice of a recipe whose method is passthrough; all "
                "slices have the recipe's. Merge slices of another method in a stage of their own"
            ),
        ),
        (
            PASS + "slices:\n- sources:\n  - {model: a, layer_rang: [0, 1]}\n",
            (
                "4: layer_rang: an entry of sources has no such key; allowed: label, layer_range, "
                "lora, model, parameters, path, revision. Did you mean 'layer_range'?"
            ),
        ),
        (
            PASS + "models:\n- {model: a, layer_range: [0, 1]}\n",
            (
                "3: layer_range: an entry of models has no such key; allowed: label, lora, model, "
                "parameters, path, revision."
            ),
        ),
        (
            PASS + "models: [a]\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n",
            (
                "3: slices: models is given too, on line 2; a recipe has exactly one of models, "
                "slices and modules"
            ),
        ),
        (
            PASS + "slices:\n- sources: [{model: a, layer_range: [0, 1]}, "
            "{model: b, layer_range: [0, 1]}]\n",
            "3: sources: passthrough takes exactly 1 model, found 2",
        ),
        (
            (
                "merge_method: slerp\nparameters: {t: 0.5}\nbase_model: c\nslices:\n"
                "- sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]\n"
            ),
            (
                "5: sources: the base of slerp, 'c', is not among them; base_model has to name one "
                "of them"
            ),
        ),
        (
            TIES + "base_model: b\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n",
            (
                "5: sources: ties needs the layers of its base, 'b', which is not among them; list "
                "it too, with its layer_range"
            ),
        ),
        (
            TIES + "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n",
            (
                "1: base_model: missing; ties needs the model that the others started from. Add "
                "base_model: <model>"
            ),
        ),
        (
            TIES + "trim: model\nbase_model: b\nslices:\n"
            "- &s {sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}\n"
            "- *s\n",
            (
                "3: trim is 'model', and this recipe merges parts of the model separately; write "
                "trim: tensor"
            ),
        ),
        (
            "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 1]}\n",
            (
                "4: weight: missing for source 'a'; linear needs it under the model or in the top-"
                "level parameters. Allowed: a number"
            ),
        ),
        (
            PASS + "modules: [a]\n",
            (
                "2: modules is a list; allowed: a mapping from a module's name "
                "to its models or slices"
            ),
        ),
        (
            PASS + "modules: {x: a}\n",
            ("2: modules: x is 'a'; allowed: a mapping with models or slices"),
        ),
        (
            PASS + "modules:\n  x: {parameters: {scale: 1}}\n",
            (
                "3: modules: x lists nothing to merge; it needs models or slices. To copy the "
                "whole module write `keep:` with a pattern, to leave it out `drop:`"
            ),
        ),
        (
            PASS + "modules:\n  x: {models: [a], slices: [{}]}\n",
            (
                "3: slices: models is given too, on line 3; the module 'x' has exactly one of "
                "models and slices"
            ),
        ),
        (
            PASS + "modules:\n  x: {models: [a], base_model: b}\n",
            (
                "3: base_model: the module 'x' has no such key; allowed: models, parameters, "
                "slices. Did you mean 'models'?"
            ),
        ),
    ],
)
def test_a_wrong_slice_or_module_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(text, path="r.yaml")
    assert str(caught.value) == f"r.yaml:{message}"
