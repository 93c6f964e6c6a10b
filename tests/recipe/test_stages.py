"""Recipes of several documents: which stage uses which, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raymerge.errors import RecipeError
from raymerge.recipe import Recipe, loads


def document(*models: str, name: str | None = None, base: str | None = None, **top: str) -> str:
    lines = [f"name: {name}"] if name else []
    lines += ["merge_method: linear", f"models: [{', '.join(models)}]", "parameters: {weight: 1}"]
    lines += [f"base_model: {base}"] if base else []
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in top.items())]) + "\n"


def read(*documents: str) -> Recipe:
    return loads("---\n".join(documents), path="r.yaml")


FIRST, SECOND = document("a", "b", name="first"), document("c", "first", name="second")
LAST = document("first", "second")


@pytest.mark.parametrize(
    "documents",
    [(FIRST, SECOND, LAST), (LAST, SECOND, FIRST), (SECOND, LAST, FIRST)],
)
def test_documents_stand_in_any_order(documents: tuple[str, ...]) -> None:
    recipe = read(*documents)

    assert [stage.name for stage in recipe.stages] == ["first", "second"]
    assert recipe.name is None
    assert recipe.results == {"first", "second"}
    assert [stage.results for stage in recipe.stages] == [set(), {"first"}]
    assert [ref.label for ref in recipe.checkpoints] == ["a", "b", "c"]
    assert recipe.no_effect == ()


def test_the_output_may_have_a_name_too() -> None:
    recipe = read(FIRST, document("first", "c", name="written"))

    assert (recipe.name, [stage.name for stage in recipe.stages]) == ("written", ["first"])
    assert recipe.no_effect == ()


def test_the_name_of_a_single_document_has_no_effect() -> None:
    recipe = read(FIRST)

    assert (recipe.stages, recipe.name, recipe.results) == ((), None, frozenset())
    assert recipe.no_effect == ("r.yaml:1: name has no effect",)


def test_each_stage_keeps_its_own_keys() -> None:
    recipe = read(
        document("a", "b", name="first", seed="7", dtype="float32", nan="pass", drop="x.*"),
        document("first", "c", seed="8", out_dtype="bfloat16", keep="y.*"),
    )
    (first,) = recipe.stages

    assert (first.seed, first.dtype, first.nan, first.drop) == (7, "F32", "pass", ("x.*",))
    assert (recipe.seed, recipe.dtype, recipe.nan, recipe.keep) == (8, "BF16", "error", ("y.*",))
    assert {stage.seed for stage in (*recipe.with_seed(3).stages, recipe.with_seed(3))} == {3}


def test_what_has_no_effect_is_listed_over_all_stages() -> None:
    idle = document("a", "b", name="first").replace("weight: 1", "weight: 1, epsilon: 2")
    assert read(idle, document("first", "c")).no_effect == (
        "r.yaml:4: epsilon has no effect on linear",
    )


def test_a_place_for_a_stage_that_is_not_written_has_no_effect() -> None:
    inner = document("a", "b", name="first", out="there")
    assert read(inner, document("first", "c")).no_effect == (
        "r.yaml:5: out has no effect: a stage inside a recipe is not written",
    )


def test_a_stage_is_named_with_a_label_of_its_own() -> None:
    text = LAST.replace("[first, second]", "[{model: first, label: x}, second]")
    assert [ref.label for ref in read(FIRST, SECOND, text).sources] == ["x", "second"]


def test_checkpoints_of_one_label_are_told_apart_over_all_stages() -> None:
    recipe = read(document("m/final", "b", name="first"), document("n/final", "first", "./b"))

    assert [ref.label for ref in recipe.stages[0].sources] == ["final", "b"]
    assert [ref.label for ref in recipe.sources] == ["final", "first", "b"]
    assert [ref.label for ref in recipe.checkpoints] == ["final#1", "b", "final#3"]
    assert [ref.location for ref in recipe.checkpoints] == ["m/final", "b", "n/final"]


def test_config_and_tokenizer_come_from_a_checkpoint_through_stages() -> None:
    recipe = read(FIRST, SECOND.replace("c, first", "first, c"), document("d", base="second"))

    assert recipe.donor.location == "second"
    assert [stage.name for stage in recipe.lineage] == [None, "second", "first"]
    assert recipe.lender.location == "a"
    assert recipe.stages[0].lineage == (recipe.stages[0],)


@pytest.mark.parametrize("name", ["linear", "float32", "weight", "my first stage", "v1.0-b_2"])
def test_a_name_means_a_stage_only_where_a_model_stands(name: str) -> None:
    """mergekit-multi looks for names in every value: a stage `linear` would be a method, too."""
    recipe = read(document("a", "b", name=f"'{name}'", dtype="float32"), document(f"'{name}'", "c"))

    assert recipe.results == {name}
    assert recipe.method.name == "linear"
    assert (recipe.stages[0].name, recipe.stages[0].dtype) == (name, "F32")


@pytest.mark.parametrize("name", [".", "..", "a/b", "a@b", "a+b", "s3://a", "a  b", " a"])
def test_a_name_that_reads_like_a_path_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml:1: name is .*; allowed: letters"):
        read(document("a", "b", name=f"'{name}'"), document("c", "d"))


def test_a_recipe_of_stages_travels() -> None:
    recipe = read(FIRST, SECOND, LAST)
    again = pickle.loads(pickle.dumps(recipe))

    assert again == recipe
    assert again.stages[0].method is recipe.method


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            (FIRST, document("c", "d", name="first")),
            "r.yaml:6: name: 'first' is also the stage on line 1; choose another",
        ),
        (
            (document("a", "b"), document("c", "d")),
            (
                "r.yaml:5: name: missing, as it is in the document on line 1; only the stage "
                "that is written can do without one, since others are used by their names"
            ),
        ),
        (
            (document("a", "b", name="x/y"), LAST),
            (
                "r.yaml:1: name is 'x/y'; allowed: letters, digits, `_`, `-`, `.` and single "
                "spaces, so that other stages can write it where a path may stand"
            ),
        ),
        (
            (document("a", "b", name="5"), LAST),
            "r.yaml:1: name is 5; allowed: a string; to mean the word, write '5'",
        ),
        (
            (FIRST, document("a", "b")),
            (
                "r.yaml:1: name: 2 stages are used by no other: 'first' (line 1), the "
                "unnamed one; raymerge writes one output, where mergekit-multi writes "
                "several. Give each a recipe file of its own, with the stages that it uses, "
                "or remove those that are not needed"
            ),
        ),
        (
            (FIRST, SECOND, document("a", "b", name="third")),
            (
                "r.yaml:6: name: 2 stages are used by no other: 'second' (line 6), 'third' "
                "(line 11); raymerge writes one output, where mergekit-multi writes several. "
                "Give each a recipe file of its own, with the stages that it uses, or remove "
                "those that are not needed"
            ),
        ),
        (
            (document("a", "second", name="first"), SECOND, LAST),
            (
                "r.yaml:3: model: stages use each other's results in a circle: first <- "
                "second <- first; none can be first"
            ),
        ),
        (
            (document("x", "b", name="a"), document("y", "a", name="b"), document("c", "d")),
            (
                "r.yaml:3: model: stages use each other's results in a circle: a <- b <- a; "
                "none can be first"
            ),
        ),
        (
            (document("a", "first", name="first"), LAST),
            (
                "r.yaml:3: model: stage 'first' uses its own result; rename the stage, or "
                "write ./first for the folder of that name"
            ),
        ),
        (
            (FIRST, document("first@main", "b")),
            (
                "r.yaml:7: revision: 'first' is a stage of this recipe, and its result has "
                "no revisions; write ./first for the folder of that name"
            ),
        ),
        (
            (FIRST, document("first", "b").replace("linear", "liner")),
            "r.yaml:6: merge_method: there is no method 'liner'",
        ),
    ],
)
def test_a_recipe_that_is_no_graph_is_refused(documents: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(*documents)
    assert str(caught.value).startswith(message)
    assert caught.value.file == "r.yaml"


def test_a_stage_counts_before_a_path_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    recipe = read(FIRST, document("first", "c"))

    assert recipe.results == {"first"}
    assert recipe.no_effect == (
        (
            "r.yaml:7: first is the stage of that name; the path first, which exists "
            "too, has no effect (./first reads it)"
        ),
    )
    asked = read(FIRST, document("./first", "c", name="second"), document("first", "second"))
    assert [ref.location for ref in asked.checkpoints] == ["a", "b", "./first", "c"]
