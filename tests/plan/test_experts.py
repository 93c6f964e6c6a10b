"""Experts in one layout: the same bytes, under the donor's names."""

from __future__ import annotations

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.experts import Joined, in_one_layout
from raymerge.plan.views import views
from tests.plans import catalog, plan, recipe

EXPERTS, WIDE, HIDDEN = 3, 5, 4
BF16 = DType.BF16
NORM = {"model.norm.weight": (BF16, (HIDDEN,))}
PACKED = {
    "model.layers.0.mlp.experts.gate_up_proj": (BF16, (EXPERTS, 2 * WIDE, HIDDEN)),
    "model.layers.0.mlp.experts.down_proj": (BF16, (EXPERTS, HIDDEN, WIDE)),
    "model.layers.0.mlp.gate.weight": (BF16, (EXPERTS, HIDDEN)),
    **NORM,
}


def separate(block: str, gate: str, up: str, down: str) -> dict[str, tuple[DType, tuple[int, ...]]]:
    tensors = {f"model.layers.0.{block}.gate.weight": (BF16, (EXPERTS, HIDDEN)), **NORM}
    for expert in range(EXPERTS):
        stem = f"model.layers.0.{block}.experts.{expert}"
        tensors |= {
            f"{stem}.{gate}.weight": (BF16, (WIDE, HIDDEN)),
            f"{stem}.{up}.weight": (BF16, (WIDE, HIDDEN)),
            f"{stem}.{down}.weight": (BF16, (HIDDEN, WIDE)),
        }
    return tensors


QWEN = separate("mlp", "gate_proj", "up_proj", "down_proj")
MIXTRAL = separate("block_sparse_moe", "w1", "w3", "w2")


@pytest.mark.parametrize("layout", [QWEN, MIXTRAL], ids=["qwen", "mixtral"])
@pytest.mark.parametrize("donor", ["a", "b"])
def test_the_donor_s_names_and_shapes_come_out(
    layout: dict[str, tuple[DType, tuple[int, ...]]], donor: str
) -> None:
    catalogs = [catalog("a", PACKED), catalog("b", layout)]
    seen = in_one_layout(views(catalogs), donor)
    like = PACKED if donor == "a" else layout
    for view in seen:
        assert {name: (one.dtype, one.shape) for name, one in view.tensors.items()} == like


def test_gate_rows_come_before_up_rows() -> None:
    seen = in_one_layout(views([catalog("a", PACKED), catalog("b", QWEN)]), "a")
    packed = seen[1].tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert isinstance(packed, Joined)
    parts = [run.of.name.split("experts.")[1] for run in packed.runs]
    assert parts == [
        f"{expert}.{part}.weight" for expert in range(EXPERTS) for part in ("gate_proj", "up_proj")
    ]


def test_one_expert_is_a_run_of_the_packed_tensor() -> None:
    seen = in_one_layout(views([catalog("a", QWEN), catalog("b", PACKED)]), "a")
    up = seen[1].tensors["model.layers.0.mlp.experts.2.up_proj.weight"]
    assert isinstance(up, Joined)
    (run,) = up.runs
    size = WIDE * HIDDEN
    assert (run.start, run.count) == (2 * 2 * size + size, size)


def test_an_expert_fewer_is_still_an_error() -> None:
    fewer = {name: kind for name, kind in QWEN.items() if "experts.2." not in name}
    with pytest.raises(PlanError, match="shape"):
        plan(recipe("linear", "a", "b"), [catalog("a", PACKED), catalog("b", fewer)])
    with pytest.raises(PlanError, match="lacks"):
        plan(recipe("linear", "a", "b"), [catalog("a", QWEN), catalog("b", fewer)])


def test_the_plan_says_in_which_layout_experts_come_out() -> None:
    made = plan(recipe("linear", "a", "b"), [catalog("a", PACKED), catalog("b", QWEN)])
    assert any(
        "experts are stored packed in a and otherwise in b; they come out as in a" in note
        for note in made.notes
    )


@pytest.mark.parametrize("stored", [PACKED, QWEN], ids=["packed", "separate"])
@pytest.mark.parametrize(("layout", "expected"), [("packed", PACKED), ("separate", QWEN)])
def test_a_layout_that_the_recipe_names_comes_out(
    stored: dict[str, tuple[DType, tuple[int, ...]]],
    layout: str,
    expected: dict[str, tuple[DType, tuple[int, ...]]],
) -> None:
    made = plan(
        recipe("linear", "a", "b", experts=layout), [catalog("a", stored), catalog("b", stored)]
    )
    assert {n.slot.name: (n.slot.dtype, n.slot.shape) for n in made.nodes} == expected
    said = any("as the recipe says" in note for note in made.notes)
    assert said == (stored is not expected)


def test_a_mixtral_that_was_packed_gets_its_own_names_back() -> None:
    catalogs = [catalog(label, PACKED, config={"model_type": "mixtral"}) for label in "ab"]
    made = plan(recipe("linear", "a", "b", experts="separate"), catalogs)
    assert {node.slot.name: node.slot.shape for node in made.nodes} == {
        name: shape for name, (_, shape) in MIXTRAL.items()
    }


def test_a_dense_model_is_left_as_it_is() -> None:
    before = views([catalog("a"), catalog("b")])
    assert in_one_layout(before, "a") == before


ODD: dict[str, dict[str, tuple[int, ...]]] = {
    "gpt-oss": {
        "gate_up_proj": (EXPERTS, HIDDEN, 2 * WIDE),
        "gate_up_proj_bias": (EXPERTS, 2 * WIDE),
        "down_proj": (EXPERTS, WIDE, HIDDEN),
        "down_proj_bias": (EXPERTS, HIDDEN),
    },
    "a bias": {
        "gate_up_proj": (EXPERTS, 2 * WIDE, HIDDEN),
        "gate_up_proj_bias": (EXPERTS, 2 * WIDE),
        "down_proj": (EXPERTS, HIDDEN, WIDE),
    },
    "transposed": {
        "gate_up_proj": (EXPERTS, HIDDEN, 2 * WIDE),
        "down_proj": (EXPERTS, WIDE, HIDDEN),
    },
    "transposed, as many columns as rows": {
        "gate_up_proj": (EXPERTS, HIDDEN, HIDDEN),
        "down_proj": (EXPERTS, HIDDEN // 2, HIDDEN),
    },
    "no gate": {"down_proj": (EXPERTS, HIDDEN, WIDE), "up_proj": (EXPERTS, WIDE, HIDDEN)},
}


@pytest.mark.parametrize("case", ODD)
def test_experts_packed_in_another_way_are_not_taken_apart(case: str) -> None:
    stem = "model.layers.0.mlp.experts."
    odd = {**NORM, **{stem + name: (BF16, shape) for name, shape in ODD[case].items()}}
    catalogs = [catalog(label, odd) for label in "ab"]
    message = r"^a: experts cannot be taken apart: it has .*down_proj \[.* without `experts: separ"
    with pytest.raises(PlanError, match=message):
        plan(recipe("linear", "a", "b", experts="separate"), catalogs)

    made = plan(recipe("linear", "a", "b"), catalogs)
    assert {node.slot.name: node.slot.shape for node in made.nodes} == {
        name: shape for name, (_, shape) in odd.items()
    }


def test_a_donor_with_separate_experts_does_not_take_others_apart_either() -> None:
    odd = {name: (kind, shape[::-1]) for name, (kind, shape) in PACKED.items()}
    with pytest.raises(PlanError, match=r"^b: experts cannot be taken apart"):
        plan(recipe("linear", "a", "b"), [catalog("a", QWEN), catalog("b", odd)])
