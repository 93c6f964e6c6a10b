"""What `raymerge plan --graph TENSOR` prints."""

from __future__ import annotations

from typing import Any

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.build import Plan
from raymerge.plan.explain_tensor import explain_tensor
from tests.plans import EMBEDDING, HEAD, MODEL, NORM, UP, catalog, plan, recipe

KNOBS = {"weight": 0.5, "density": 0.25}
SHARED = "normalize true, rescale false, lambda 1, trim tensor"


def three_way(**top: Any) -> Plan:
    merge = recipe("ties", "math", "code", base="base", **{"parameters": KNOBS, **top})
    return plan(merge)


def test_a_tensors_graph_in_full() -> None:
    weight = {"weight": [{"value": 0.5}], "density": 0.25}
    models = ["math", {"model": "code", "parameters": {"weight": 0.125}}]
    made = three_way(models=models, parameters=weight)
    read = "model.safetensors  bytes 2048-4096  bfloat16 [64, 16]"

    assert explain_tensor(made, UP).splitlines() == [
        UP,
        "|- reads",
        f"|  |- base  {read}",
        f"|  |- math  {read}  weight 0.5, density 0.25",
        f"|  `- code  {read}  weight 0.125, density 0.25",
        "|- ties",
        "|  |- histogram  magnitudes of each task vector, which give its threshold",
        f"|  |- delta      select, weight, elect, fuse, add to the base, cast ({SHARED})",
        "|  `- inputs stay in memory",
        "`- writes",
        "   `- model-00001-of-00001.safetensors  bytes 1504-3552  bfloat16 [64, 16]",
    ]


def test_every_tensor_of_a_model_has_a_graph_with_its_address() -> None:
    made = three_way()

    for shard in made.shards:
        for slot in shard.slots:
            last = explain_tensor(made, slot.name).splitlines()[-1]
            assert f"{shard.name}  bytes {slot.start}-{slot.stop}  " in last


@pytest.mark.parametrize(
    ("method", "base", "knobs", "passes"),
    [
        ("linear", None, {"weight": 3.0}, ["span"]),
        ("slerp", "base", {"t": 0.5}, ["gram", "span"]),
        ("dare_ties", "base", KNOBS, ["delta"]),
        ("ties", "base", {**KNOBS, "rescale": "l1"}, ["histogram", "norms", "delta"]),
        ("ties", "base", {**KNOBS, "trim": "model"}, ["survey", "delta"]),
        ("breadcrumbs", "base", KNOBS, ["histogram", "delta"]),
        ("della", "base", KNOBS, ["delta"]),
        ("della", "base", {**KNOBS, "rescale": "l1"}, ["norms", "delta"]),
        ("arcee_fusion", "base", {}, ["divergence", "histogram", "fuse"]),
    ],
)
def test_a_graph_names_the_passes_in_their_order(
    method: str, base: str | None, knobs: dict[str, Any], passes: list[str]
) -> None:
    sources = ["a"] if method in ("slerp", "arcee_fusion") else ["a", "b"]
    made = plan(recipe(method, *sources, base=base, parameters=knobs))

    lines = explain_tensor(made, UP).splitlines()
    known = {"span", "gram", "delta", "histogram", "norms", "survey", "divergence", "fuse"}
    assert [word for line in lines if (word := line[6:].split()[0]) in known] == passes


@pytest.mark.parametrize(
    ("row_wise", "groups"), [(False, "64 rows of 16"), (True, "16 columns of 64")]
)
def test_passes_by_row_or_column_say_of_how_many(*, row_wise: bool, groups: str) -> None:
    knobs = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    made = plan(recipe("nuslerp", "a", "b", parameters=knobs))

    text = explain_tensor(made, UP)
    assert f"gram       inner products within each of {groups}, which give its coeff" in text
    assert f"span       sum of the inputs times the coefficients of each of {groups}, cast" in text
    assert "gram       inner products, which give the coefficients" in explain_tensor(made, NORM)


def test_rows_that_are_ranked_whole_are_named_with_their_tiles() -> None:
    made = plan(recipe("della", "a", "b", base="base", parameters=KNOBS))
    lines = explain_tensor(made, UP).splitlines()
    assert "|  `- ranked in whole rows of 16 entries, tiles of 1,024 elements" in lines

    whole = plan(recipe("della", "a", "b", base="base", parameters={"weight": 1}))
    assert "ranked" not in explain_tensor(whole, UP)


def test_coefficients_known_while_planning_stand_beside_their_source() -> None:
    models = ["a", {"model": "b", "parameters": {"weight": 3}}]
    made = plan(recipe("linear", "a", "b", models=models))

    text = explain_tensor(made, UP)
    assert "weight 1, coefficient 0.25" in text
    assert "weight 3, coefficient 0.75" in text


def test_a_copy_says_why_and_what_has_to_be_equal() -> None:
    integers = {**MODEL, NORM: (DType.I64, (16,))}
    made = plan(recipe("linear", "a", "b"), [catalog("a", integers), catalog("b", integers)])

    lines = explain_tensor(made, NORM).splitlines()
    assert "|- copied: not a floating-point tensor" in lines
    assert "|  `- inputs have to hold the same bytes" in lines


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.layers.0.mlp.up_prj.weight", f"Did you mean {UP!r}?"),
        ("zzz", "the output has no tensor 'zzz', 4 others."),
        (NORM, f"{NORM} is not in the output: the recipe drops it"),
    ],
)
def test_an_unknown_tensor_is_refused_with_the_name_that_was_meant(name: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        explain_tensor(three_way(drop=NORM), name)

    assert says in caught.value.message
    assert caught.value.tensor == name


def test_a_tied_head_is_refused_as_such() -> None:
    made = plan(recipe("passthrough", "a"), [catalog("a", config={"tie_word_embeddings": True})])

    with pytest.raises(PlanError, match=f"it is tied to {EMBEDDING}"):
        explain_tensor(made, HEAD)
    assert f"`- a: {HEAD}" in explain_tensor(made, EMBEDDING)
