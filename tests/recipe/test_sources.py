"""Which checkpoints a recipe names, what they are called, and who is the base."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from raymerge.errors import RecipeError
from raymerge.methods.registry import Over
from raymerge.recipe import Recipe, loads

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = "parameters: {weight: 1}\n"


def linear(*models: str, rest: str = "") -> Recipe:
    listed = "".join(f"- {model}\n" for model in models)
    return loads(f"merge_method: linear\nmodels:\n{listed}{WEIGHT}{rest}", path="r.yaml")


def ties(models: str, base: str) -> Recipe:
    text = f"merge_method: ties\nbase_model: {base}\nmodels: {models}\n{WEIGHT}"
    return loads(text, path="r.yaml")


def labels(recipe: Recipe) -> list[str]:
    return [source.label for source in recipe.all_sources]


@pytest.mark.parametrize(
    ("model", "location", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@v1", "org/name", "v1"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("hf://org/name@v1", "hf://org/name", "v1"),
        ("./folder/", "./folder/", None),
        ("s3://bucket/run@3+lr/model", "s3://bucket/run@3+lr/model", None),
        ("{model: org/name}", "org/name", None),
        ("{model: org/name@v1}", "org/name", "v1"),
        ("{model: org/name, revision: v1}", "org/name", "v1"),
        ("{path: org/name@v1}", "org/name@v1", None),
        ("{path: org/name, revision: v1}", "org/name", "v1"),
        ("{model: {path: org/name, revision: v1}}", "org/name", "v1"),
        ("{model: {model: {path: org/name}, lora: null}}", "org/name", None),
        ("{model: org/name, lora: null, override_architecture: null}", "org/name", None),
    ],
)
def test_a_model_is_a_string_or_one_of_mergekits_mappings(
    model: str, location: str, revision: str | None
) -> None:
    (source,) = linear(model).sources
    assert (source.location, source.revision, source.line) == (location, revision, 3)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("org/name+org/lora", ("org/name", None, "org/lora", None)),
        ("org/name@v1+org/lora@v2", ("org/name", "v1", "org/lora", "v2")),
        ("./m+s3://bucket/lora@3", ("./m", None, "s3://bucket/lora@3", None)),
        ("s3://bucket/m+az://c/lora@3", ("s3://bucket/m", None, "az://c/lora@3", None)),
        ("hf://org/m@v1+hf://org/lora@v2", ("hf://org/m", "v1", "hf://org/lora", "v2")),
        ("{model: org/name+org/lora}", ("org/name", None, "org/lora", None)),
        ("{model: org/name, lora: org/lora@v2}", ("org/name", None, "org/lora", "v2")),
        ("{path: x+y@z, lora: {path: v+w}}", ("x+y@z", None, "v+w", None)),
        (
            "{model: {model: {path: a, revision: '1'}, lora: {path: b, revision: '2'}}}",
            ("a", "1", "b", "2"),
        ),
    ],
)
def test_a_model_may_have_an_adapter(model: str, found: tuple[str | None, ...]) -> None:
    (source,) = linear(model).sources
    assert source.adapter is not None
    adapter = source.adapter
    assert (source.location, source.revision, adapter.location, adapter.revision) == found
    assert adapter.label == f"{source.label} adapter"
    assert linear(model).adapters == (adapter,)


def test_models_that_differ_in_their_adapters_are_different_sources() -> None:
    recipe = ties("[x/m+y/math, x/m+y/code, x/m]", "x/m")
    assert labels(recipe) == ["m", "m+math", "m+code"]
    assert [source.label for source in recipe.sources] == ["m+math", "m+code"]
    based = ties("[x/m]", "x/m+y/math")
    assert based.base is not None
    assert (based.base.label, based.donor.adapter) == ("m+math", based.adapters[0])


def test_each_part_of_model_and_adapter_is_whole_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    (source,) = linear("model@v1+lora@v2").sources
    assert source.adapter is not None
    assert (source.location, source.revision) == ("model@v1", None)
    assert (source.adapter.location, source.adapter.revision) == ("lora", "v2")


@pytest.mark.parametrize("name", ["a+b", "model@v1", "x@y+z"])
def test_a_path_that_exists_is_taken_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert linear(name).sources[0].location == name
    assert linear(str(tmp_path / name)).sources[0].label == name


@pytest.mark.parametrize(
    ("locations", "expected"),
    [
        (["/data/a", "s3://bucket/deep/b/", "org/c@v1"], ["a", "b", "c"]),
        (["x/model", "y/model", "z/other"], ["x/model", "y/model", "other"]),
        (["1/x/model", "2/x/model"], ["x/model#1", "x/model#2"]),
        (["org/a", "org/a@v1"], ["org/a#1", "org/a#2"]),
        (["a", "x/a"], ["a", "x/a"]),
        (["./x/../a"], ["a"]),
        (["x/m+a/lora", "y/m+b/lora"], ["x/m+a/lora", "y/m+b/lora"]),
        (["x/m+a/lora", "x/m+b/other"], ["m+lora", "m+other"]),
        (["x/m+a/lora@1", "x/m+a/lora@2"], ["x/m+a/lora#1", "x/m+a/lora#2"]),
    ],
)
def test_a_label_is_the_last_component_unless_two_would_be_equal(
    locations: list[str], expected: list[str]
) -> None:
    assert labels(linear(*locations)) == expected


@pytest.mark.parametrize("place", ["/mnt/disk/", "s3://bucket/runs/7/", "hf://someone/", ""])
def test_a_label_does_not_depend_on_where_the_checkpoint_lies(place: str) -> None:
    assert labels(linear(f"{place}math", f"{place}code")) == ["math", "code"]


def test_a_given_label_is_taken_and_the_other_makes_way() -> None:
    assert labels(linear("{model: x/a, label: b}", "y/b")) == ["b", "y/b"]


def test_the_label_of_a_listed_base_may_stand_at_either_mention() -> None:
    recipe = ties("[x/base, x/a]", "{model: x/base, label: original}")
    assert recipe.base is not None
    assert recipe.base.label == "original"
    with pytest.raises(RecipeError, match=r"r\.yaml:3: label: 'b' here, 'a' under base_model"):
        ties("[{model: x, label: b}, y]", "{model: x, label: a}")


def test_relative_methods_leave_the_base_out_of_the_sources() -> None:
    for models in ("[a, b]", "[a, base, b]"):
        recipe = ties(models, "base")
        assert [source.label for source in recipe.sources] == ["a", "b"]
        assert labels(recipe) == ["base", "a", "b"]
        assert recipe.donor is recipe.base


def test_slerp_takes_the_other_of_two_models_as_its_source() -> None:
    for models in ("[a, base]", "[base, a]", "[a]"):
        recipe = loads(
            f"merge_method: slerp\nbase_model: base\nmodels: {models}\nparameters: {{t: 0.5}}"
        )
        assert [source.label for source in recipe.sources] == ["a"]
        assert recipe.base is not None
        assert recipe.base.label == "base"


def test_linear_counts_an_unlisted_base_last_and_a_listed_one_where_it_stands() -> None:
    unlisted = linear("a", "b", rest="base_model: base")
    assert [source.label for source in unlisted.sources] == ["a", "b", "base"]
    assert unlisted.base is unlisted.sources[2]
    assert unlisted.all_sources == unlisted.sources
    listed = linear("base", "b", rest="base_model: base")
    assert listed.base is listed.sources[0]
    assert listed.donor.label == "base"


def test_nuslerp_leaves_a_base_out_of_the_sources_and_does_without_one() -> None:
    rest = "parameters: {weight: 1}"
    for models in ("[a, b]", "[a, base, b]"):
        recipe = loads(f"merge_method: nuslerp\nbase_model: base\nmodels: {models}\n{rest}")
        assert [source.label for source in recipe.sources] == ["a", "b"]
        assert recipe.over(recipe.sections[0]) is Over.DELTAS
    recipe = loads(f"merge_method: nuslerp\nmodels: [a, b]\n{rest}")
    assert recipe.base is None
    assert recipe.over(recipe.sections[0]) is Over.SOURCES


def test_karcher_counts_an_unlisted_base_which_needs_no_knob() -> None:
    recipe = loads("merge_method: karcher\nbase_model: base\nmodels: [a, b]")
    assert [source.label for source in recipe.sources] == ["a", "b", "base"]


def test_without_a_base_the_first_model_is_the_donor() -> None:
    recipe = linear("a", "b")
    assert recipe.base is None
    assert recipe.donor is recipe.sources[0]


def test_an_unlisted_base_of_linear_needs_a_shared_weight() -> None:
    with pytest.raises(RecipeError) as caught:
        loads(
            "merge_method: linear\nbase_model: org/base\nmodels:\n"
            "- {model: a, parameters: {weight: 1}}\n",
            path="r.yaml",
        )
    assert str(caught.value) == (
        "r.yaml:2: base_model: linear counts 'base' as one more source, since a base that is not "
        "listed under models is added to them (mergekit's rule), and it has no weight. List it "
        "with a weight of its own (0 leaves it out), give a weight in the top-level parameters, or "
        "remove base_model"
    )
    assert caught.value.source == "base"


def test_a_model_that_is_here_is_one_however_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    for spelt in (f"{tmp_path}/a", "link", "./a/../a"):
        with pytest.raises(RecipeError, match="is listed twice"):
            loads(f"merge_method: karcher\nmodels: [a, '{spelt}']\n")
        text = f"merge_method: ties\nbase_model: a\nmodels: ['{spelt}', b]\n"
        recipe = loads(f"{text}parameters: {{weight: 1}}\n")
        assert [source.label for source in recipe.sources] == ["b"]


def test_labels_that_are_equal_on_one_line_are_refused() -> None:
    models = "models: [{model: x, label: m}, {model: y, label: m}]"
    with pytest.raises(RecipeError, match="label: 'm' is also the label of 'x' on line 2"):
        loads(f"merge_method: linear\n{models}\nparameters: {{weight: 1}}\n", path="r.yaml")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            ["a", "b", "./a/"],
            (
                "r.yaml:5: model: './a/' is listed twice, first on line 3; list it once, where "
                "there are weights with their sum"
            ),
        ),
        (
            ["{model: x/m, label: a}", "{model: y/m, label: a}"],
            "r.yaml:4: label: 'a' is also the label of 'x/m' on line 3; choose another",
        ),
        (
            ["a+b+c"],
            (
                "r.yaml:3: model is 'a+b+c', which does not exist as a path; allowed: "
                "model+adapter, with one + in all. Where a location has a + of its own, write "
                "{path: ..., lora: {path: ...}}"
            ),
        ),
        (
            ["{model: a+b, lora: c}"],
            (
                "r.yaml:3: lora: a second adapter; 'b' is already added to the model. Merge the "
                "first one with passthrough and add the second one to the result"
            ),
        ),
        (
            ["{model: a, lora: b+c}"],
            (
                "r.yaml:3: lora: a second adapter; 'b' is already added to the model. Merge the "
                "first one with passthrough and add the second one to the result"
            ),
        ),
        (
            ["a+b", "{model: a, lora: {path: b}}"],
            (
                "r.yaml:4: model: 'a' is listed twice, first on line 3; list it once, where there "
                "are weights with their sum"
            ),
        ),
        (
            ["{model: a, lora: {path: b, weight: 1}}"],
            "r.yaml:3: weight: lora has no such key; allowed: model, path, revision.",
        ),
        (
            ["org/a@"],
            "r.yaml:3: model is 'org/a@'; allowed: a path, URL or repository, or name@revision",
        ),
        (["7"], "r.yaml:3: model is 7; allowed: a string; to mean the word, write '7'"),
        (["[a]"], "r.yaml:3: model is a list; allowed: a path, URL or repository"),
        (
            ["{label: a}"],
            "r.yaml:3: model: say where it is, with exactly one of model and path",
        ),
        (
            ["{model: a@1, revision: '2'}"],
            "r.yaml:3: revision: given twice; '1' is already part of the model",
        ),
        (
            ["{model: a, weight: 0.5}"],
            (
                "r.yaml:3: weight: a knob, and knobs stand under parameters; write parameters: "
                "{weight: ...}"
            ),
        ),
        (
            ["{model: a, paramaters: {}}"],
            (
                "r.yaml:3: paramaters: an entry of models has no such key; allowed: label, lora, "
                "model, parameters, path, revision. Did you mean 'parameters'?"
            ),
        ),
        (
            ["{model: a, parameters: 1}"],
            "r.yaml:3: parameters is 1; allowed: a mapping such as {weight: 0.5}",
        ),
        (
            ["{model: a, label: 1}"],
            "r.yaml:3: label is 1; allowed: a string; to mean the word, write '1'",
        ),
    ],
)
def test_a_wrong_model_is_refused_with_its_line(models: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        linear(*models)
    assert str(caught.value) == message


def test_a_base_may_be_alone_where_an_adapter_is_merged_into_it() -> None:
    listed = {"base_model": "a+lora", "models": ["a+lora"]}
    document = {"merge_method": "task_arithmetic", **listed, "parameters": {"weight": 1}}
    recipe = loads(json.dumps(document), path="r.yaml")

    assert [source.label for source in recipe.sources] == []
    assert recipe.base is not None
    assert recipe.no_effect[-1] == "r.yaml:1: models: nothing is added to the base, listed alone"


def test_one_model_at_two_revisions_is_two_sources() -> None:
    assert [source.revision for source in linear("a@1", "a@2").sources] == ["1", "2"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"merge_method": "ties", "models": ["a"]},
            (
                "base_model: missing; ties needs the model that the others started from. "
                "Add base_model: <model>"
            ),
        ),
        (
            {"merge_method": "slerp", "models": ["a", "b"]},
            (
                "base_model: missing; slerp needs the model that the others started from. "
                "Add base_model: <model>"
            ),
        ),
        (
            {"merge_method": "ties", "base_model": "a", "models": ["a"]},
            "models: ties takes at least 1 model besides the base, found 0",
        ),
        (
            {"merge_method": "slerp", "base_model": "b", "models": ["a", "b", "c"]},
            "models: slerp takes exactly 1 model besides the base, found 2",
        ),
        (
            {"merge_method": "passthrough", "models": ["a", "b"]},
            "models: passthrough takes exactly 1 model, found 2",
        ),
        (
            {"merge_method": "passthrough", "base_model": "b", "models": ["a"]},
            (
                "models: passthrough takes exactly 1 model, found 2 (base_model, not listed, is "
                "one more)"
            ),
        ),
        (
            {"merge_method": "nuslerp", "models": ["a", "b", "c"]},
            "models: nuslerp takes exactly 2 models, found 3",
        ),
        (
            {"merge_method": "nuslerp", "base_model": "b", "models": ["a", "b"]},
            "models: nuslerp takes exactly 2 models besides the base, found 1",
        ),
        (
            {"merge_method": "model_stock", "base_model": "b", "models": ["a"]},
            "models: model_stock takes at least 2 models besides the base, found 1",
        ),
        ({"merge_method": "linear"}, "models: missing; list the models to merge"),
        ({"merge_method": "linear", "models": []}, "models: missing; list the models to merge"),
        ({"merge_method": "linear", "models": "a"}, "models is 'a'; allowed: a list of models"),
    ],
)
def test_the_wrong_number_of_models_is_refused(recipe: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loads(json.dumps(recipe), path="r.yaml")
    assert str(caught.value) == f"r.yaml:1: {message}"


def test_another_architecture_is_noted_as_without_effect() -> None:
    recipe = loads(
        "merge_method: passthrough\nmodels: [{model: a, override_architecture: b}]\n", path="r.yaml"
    )
    assert recipe.no_effect == (
        "r.yaml:2: override_architecture has no effect: there is no table of architectures",
    )
