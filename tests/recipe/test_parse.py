"""Whole recipes: top-level keys, precedence of mistakes, what is accepted to no effect."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import RecipeError
from raymerge.recipe import Knobs, Recipe, load, loads

if TYPE_CHECKING:
    from pathlib import Path

TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/math
    parameters: {weight: 1, density: 0.5}
  - model: org/code
    parameters:
      weight: 0.5
      density: 0.2
"""
SLERP = "merge_method: slerp\nbase_model: a\nmodels: [b]\n"
LINEAR = "merge_method: linear\nmodels: [a, b]\n"


def knobs(text: str, name: str = "model.norm.weight") -> Knobs:
    return loads(text).resolver([name])(name)


def test_a_recipe_says_everything_with_defaults_filled_in() -> None:
    recipe = loads(TIES, path="r.yaml")
    assert recipe.method.name == "ties"
    assert [source.label for source in recipe.all_sources] == ["base", "math", "code"]
    assert [source.line for source in recipe.all_sources] == [2, 4, 6]
    assert (recipe.path, recipe.text) == ("r.yaml", TIES)
    assert (recipe.dtype, recipe.seed, recipe.nan) == (None, 0, "error")
    assert (recipe.drop, recipe.keep, recipe.no_effect) == ((), (), ())
    assert knobs(TIES) == {
        "weight": (1.0, 0.5),
        "density": (0.5, 0.2),
        "normalize": True,
        "rescale": False,
        "lambda": 1.0,
        "trim": "tensor",
    }


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("dtype: bfloat16", "dtype", DType.BF16),
        ("dtype: torch.float16", "dtype", DType.F16),
        ("dtype: float32\nout_dtype: bfloat16", "dtype", DType.BF16),
        ("out_dtype: float32", "dtype", DType.F32),
        ("dtype: null", "dtype", None),
        ("seed: 18446744073709551615", "seed", 2**64 - 1),
        ("seed: 0x10", "seed", 16),
        ("drop: '*.mtp.*'", "drop", ("*.mtp.*",)),
        ("keep: [lm_head.weight, a]", "keep", ("lm_head.weight", "a")),
        ("nan: pass", "nan", "pass"),
        ("slices: null", "no_effect", ()),
        ("name: my-merge", "no_effect", ("r.yaml:10: name has no effect",)),
    ],
)
def test_top_level_keys_are_read(lines: str, field: str, value: object) -> None:
    assert getattr(loads(TIES + lines, path="r.yaml"), field) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "dtype: bf16",
            "dtype is 'bf16'; allowed: bfloat16, float16, float32. Did you mean 'bfloat16'?",
        ),
        (
            "out_dtype: fp16",
            "out_dtype is 'fp16'; allowed: bfloat16, float16, float32. Did you mean 'float16'?",
        ),
        (
            "dtype: float64",
            (
                "dtype is 'float64'; allowed: bfloat16, float16, float32. Arithmetic is float32, "
                "so float64 would add nothing"
            ),
        ),
        ("dtype: int64", "dtype is 'int64'; allowed: bfloat16, float16, float32."),
        ("seed: -1", "seed is -1; allowed: a whole number from 0 to 2**64 - 1"),
        (
            "seed: 18446744073709551616",
            "seed is 18446744073709551616; allowed: a whole number from 0 to 2**64 - 1",
        ),
        ("seed: true", "seed is true; allowed: a whole number from 0 to 2**64 - 1"),
        ("seed: 1.0", "seed is 1.0; allowed: a whole number from 0 to 2**64 - 1"),
        ("seed: [1]", "seed is a list; allowed: a whole number from 0 to 2**64 - 1"),
        ("drop: []", "drop is an empty list; allowed: tensor-name patterns, or no drop"),
        ("drop: ''", "drop is ''; allowed: a string"),
        ("keep: [a, null]", "keep is null; allowed: a string"),
        ("keep: {a: 1}", "keep is a mapping; allowed: a string"),
        ("nan: pas", "nan is 'pas'; allowed: 'error' or 'pass'. Did you mean 'pass'?"),
        (
            "normalize: true",
            (
                "normalize: a knob, and knobs stand under parameters; write parameters: "
                "{normalize: ...}"
            ),
        ),
        ("int8_mask: true", "int8_mask: has no effect here, wherever it stands; leave it out"),
        (
            "parameters: {dtype: bfloat16}",
            "dtype: a key of the recipe, no knob; write it beside parameters",
        ),
        (
            "modules: {text: {}}",
            (
                "modules: models is given too, on line 3; a recipe has exactly one of models, "
                "slices and modules"
            ),
        ),
        ("models: [x]", "models: given twice, first on line 3"),
        (
            "parameters: {densty: 1}",
            (
                "densty: ties has no such knob; allowed: density, lambda, normalize, rescale, "
                "trim, weight. Did you mean 'density'?"
            ),
        ),
        (
            "parameters: {epsilonn: 1}",
            (
                "epsilonn: ties has no such knob; allowed: density, lambda, normalize, rescale, "
                "trim, weight."
            ),
        ),
        (
            "parameters: {filter: mlp}",
            (
                "filter: ties has no such knob; allowed: density, lambda, normalize, rescale, "
                "trim, weight. A condition is part of a value: weight: [{filter: mlp, value: 0.5}, "
                "{value: 1}]"
            ),
        ),
        ("parameters: [weight]", "parameters is a list; allowed: a mapping such as {weight: 0.5}"),
        ("trim: modle", "trim is 'modle'; allowed: 'tensor' or 'model'. Did you mean 'model'?"),
        (
            "seeed: 1",
            (
                "seeed: a recipe has no such key; allowed: base_model, chat_template, drop, dtype, "
                "experts, keep, merge_method, models, modules, name, nan, out, out_dtype, "
                "parameters, rescale, seed, slices, sweep, tokenizer, tokenizer_source, trim. "
                "Did you mean 'seed'?"
            ),
        ),
    ],
)
def test_a_wrong_top_level_key_is_refused_with_its_line(line: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(f"{TIES}{line}\n", path="r.yaml")
    assert str(caught.value) == f"r.yaml:10: {message}"


def test_an_empty_list_says_nothing_as_in_mergekit() -> None:
    assert loads(f"{LINEAR}parameters: {{weight: 1}}\nslices: []\nmodules: {{}}\n").whole
    with pytest.raises(RecipeError, match=r"^r\.yaml:1: models: missing; list the models"):
        loads("merge_method: passthrough\nslices: []\n", path="r.yaml")


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError) as caught:
        loads("\nmerge_method: teis\nmodels: [a]\n", path="r.yaml")
    message = (
        "r.yaml:2: merge_method: there is no method 'teis'; allowed: arcee_fusion, breadcrumbs"
    )
    assert str(caught.value).startswith(message)
    assert "Did you mean 'ties'?" in str(caught.value)


def test_a_recipe_without_a_method_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml:1: merge_method: missing; allowed: arcee"):
        loads("models: [a]\n", path="r.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- b\n",
            (
                "r.yaml:4: weight: missing for source 'b'; linear needs it under the model or in "
                "the top-level parameters. Allowed: a number"
            ),
        ),
        (
            SLERP,
            "r.yaml:1: t: missing; slerp needs it in the top-level parameters. Allowed: a number",
        ),
        (
            f"{SLERP}parameters:\n  weight: 1\n",
            "r.yaml:4: t: missing; slerp needs it in the top-level parameters. Allowed: a number",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels:\n- model: b\n  parameters: {t: 0.5}\n",
            (
                "r.yaml:1: t: missing; slerp needs it in the top-level parameters (under a model, "
                "on line 5, it has no effect). Allowed: a number"
            ),
        ),
    ],
)
def test_a_required_knob_that_is_missing_is_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(text, path="r.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{LINEAR}parameters: {{weight: 1, density: [x], int8_mask: {{}}}}\n",
            [
                "r.yaml:3: density has no effect on linear",
                "r.yaml:3: int8_mask has no effect on linear",
            ],
        ),
        (
            f"{LINEAR}parameters: {{weight: 1}}\nrescale: true",
            ["r.yaml:4: rescale has no effect on linear"],
        ),
        (
            (
                "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight: 1\n"
                "    normalize: whatever\n"
            ),
            [
                (
                    "r.yaml:6: normalize has no effect under a model: linear takes it from the "
                    "top-level parameters"
                )
            ],
        ),
        (
            (
                "merge_method: ties\nbase_model: b\nmodels:\n- a\n"
                "- model: b\n  parameters: {weight: 1, density: 7}\nparameters: {weight: 1}\n"
            ),
            [
                "r.yaml:6: weight of the base has no effect on ties",
                "r.yaml:6: density of the base has no effect on ties",
            ],
        ),
        (
            f"{LINEAR}parameters:\n  weight:\n    - value: 1\n    - value: 2\n      filter: mlp\n",
            ["r.yaml:6: this condition of weight has no effect: one above it always matches"],
        ),
    ],
)
def test_what_has_no_effect_is_accepted_and_listed(text: str, expected: list[str]) -> None:
    assert list(loads(text, path="r.yaml").no_effect) == expected


def test_an_unknown_name_is_refused_on_the_base_too() -> None:
    text = (
        "merge_method: ties\nbase_model: b\nmodels:\n- a\n"
        "- model: b\n  parameters: {wieght: 1}\nparameters: {weight: 1}\n"
    )
    with pytest.raises(RecipeError, match=r"^r\.yaml:6: wieght: ties has no such knob"):
        loads(text, path="r.yaml")


def test_a_knob_of_ours_that_belongs_to_another_method_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        loads(f"{LINEAR}trim: model\n", path="r.yaml")
    assert str(caught.value) == (
        "r.yaml:3: trim: linear has no such knob, it belongs to ties; allowed: normalize, weight"
    )


@pytest.mark.parametrize(("name", "value"), [("trim", "model"), ("rescale", "l1")])
def test_trim_and_rescale_may_stand_at_the_top_but_in_one_place_only(name: str, value: str) -> None:
    assert knobs(f"{TIES}{name}: {value}\n")[name] == value
    assert knobs(f"{TIES}parameters: {{{name}: {value}}}\n")[name] == value
    with pytest.raises(RecipeError) as caught:
        loads(f"{TIES}{name}: {value}\nparameters: {{{name}: {value}}}\n", path="r.yaml")
    assert str(caught.value) == (
        f"r.yaml:10: {name}: also given under parameters, on line 11; keep one of the two"
    )


def test_density_may_differ_by_source_but_not_by_tensor_when_it_is_of_the_whole_model() -> None:
    assert knobs(f"{TIES}trim: model\n")["density"] == (0.5, 0.2)
    for varying in ("[0.1, 0.2]", "{value: 0.2, filter: mlp}"):
        with pytest.raises(RecipeError) as caught:
            loads(f"{TIES.replace('density: 0.2', f'density: {varying}')}trim: model\n", path="r")
        assert str(caught.value) == (
            "r:9: density: varies by tensor, and under trim: model it is a fraction of the whole "
            "model; write one number per source, or trim: tensor"
        )


def test_a_shared_density_that_varies_is_harmless_under_trim_model_where_no_source_reads_it() -> (
    None
):
    assert knobs(f"{TIES}trim: model\nparameters: {{density: [0, 1]}}\n")["density"] == (0.5, 0.2)


def test_a_recipe_is_frozen_and_survives_pickle() -> None:
    recipe = loads(f"{TIES}parameters: {{lambda: [0, 1]}}\n")
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]  # what the test is about
    assert not hasattr(recipe, "__dict__")


def test_load_reads_a_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "ties.yaml"
    path.write_text(f"\ufeff{TIES}", encoding="utf-8")
    recipe: Recipe = load(path)
    assert recipe == load(str(path))
    assert (recipe.path, recipe.text) == (str(path), TIES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such recipe file"),
        (b"", "the recipe is empty; it needs merge_method and models"),
        (b"name: \xff\n", "is not UTF-8 text (byte 6); a recipe is a YAML file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"
    assert caught.value.exit_code == 2


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_errors_survive_pickle() -> None:
    with pytest.raises(RecipeError) as caught:
        loads("models: []", path="r.yaml")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_layout_of_experts_is_one_of_three() -> None:
    for layout in ("donor", "separate", "packed"):
        assert loads(f"{LINEAR}parameters: {{weight: 1}}\nexperts: {layout}\n").experts == layout
    with pytest.raises(RecipeError, match=r"experts is 'pakced'; allowed: .* mean 'packed'"):
        loads(f"{LINEAR}parameters: {{weight: 1}}\nexperts: pakced\n")


def test_what_has_no_effect_is_listed_of_every_stage() -> None:
    text = (
        "name: first\nmerge_method: karcher\nmodels:\n- {model: a, override_architecture: X}\n- b\n"
        "---\nmerge_method: linear\nmodels: [first, c]\nparameters: {weight: 1, density: 1}\n"
    )
    assert [note.partition(" has ")[0] for note in loads(text, path="r.yaml").no_effect] == [
        "r.yaml:4: override_architecture",
        "r.yaml:9: density",
    ]
