"""Stages in a plan: one graph, its digest, its memory, and how it is shown."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.build import Plan
from raymerge.plan.document import as_json
from raymerge.plan.explain import explain
from raymerge.plan.explain_tensor import explain_tensor
from raymerge.plan.graph import TensorNode
from raymerge.plan.memory import Budget, with_inner, working_bytes
from raymerge.plan.merged import Merged
from raymerge.plan.stages import terms
from raymerge.recipe import loads
from raymerge.runtime.card import model_card
from tests.plans import EMBEDDING, HEAD, MODEL, TIED, UP, catalog, plan

Document = Mapping[str, Any]
SOUP = {
    "name": "soup",
    "merge_method": "linear",
    "models": ["a", "b"],
    "parameters": {"weight": 0.5},
    "dtype": "float32",
}
DRAWN = {
    "name": "drawn",
    "merge_method": "dare_linear",
    "base_model": "soup",
    "models": ["c"],
    "parameters": {"weight": 1, "density": 0.5},
    "seed": 3,
}
WRITTEN = {
    "merge_method": "slerp",
    "base_model": "drawn",
    "models": ["soup"],
    "parameters": {"t": 0.5},
}


def staged(*documents: Document, **options: Any) -> Plan:
    text = "---\n".join(f"{json.dumps(document)}\n" for document in documents)
    merge = loads(text, path="r.yaml")
    catalogs = options.pop("catalogs", None)
    if catalogs is None:
        catalogs = [catalog(source.label) for source in merge.checkpoints]
    return plan(merge, catalogs, **options)


def node(made: Plan, name: str) -> TensorNode:
    return next(node for node in made.nodes if node.slot.name == name)


@pytest.fixture
def made() -> Plan:
    return staged(SOUP, DRAWN, WRITTEN)


def test_equal_results_are_one_object_and_every_source_is_planned_once(made: Plan) -> None:
    drawn, soup = node(made, UP).inputs
    assert isinstance(drawn, Merged)
    assert isinstance(soup, Merged)

    assert drawn.node.inputs[0] is soup
    assert [source.label for source in made.sources] == ["a", "b", "c"]
    assert [one.source for one in (drawn, soup)] == [4, 3]
    assert [read.source for read in drawn.reads] == [0, 1, 2]
    assert [made.label(one) for one in (soup, soup.node.inputs[1])] == ["soup", "b"]
    assert soup.node.step is made.stages[0].nodes[0].step


def test_an_edge_has_the_dtype_of_its_stage() -> None:
    made = staged(SOUP, DRAWN, {**WRITTEN, "dtype": "float16"})
    drawn, soup = node(made, UP).inputs

    assert (soup.dtype, drawn.dtype, node(made, UP).slot.dtype) == (
        DType.F32, DType.F32, DType.F16,
    )  # fmt: skip
    rounded = staged({**SOUP, "dtype": "bfloat16"}, DRAWN, WRITTEN)
    assert {one.dtype for one in node(rounded, UP).inputs} == {DType.BF16}
    assert "narrowed from F32 to F16: 5 tensors" in made.notes


def test_notes_on_a_stage_have_its_name() -> None:
    made = staged(
        SOUP, {**DRAWN, "parameters": {"weight": 0, "density": 1}, "dtype": "bfloat16"}, WRITTEN
    )
    assert f"stage drawn: narrowed from F32 to BF16: {len(MODEL)} tensors" in made.notes
    assert any(note.startswith("stage drawn: every weight is 0") for note in made.notes)


def test_terms_are_each_stage_s_own(made: Plan) -> None:
    found = [terms(stage.recipe, made.recipe, made.sources) for stage in made.stages]

    assert [(each.name, each.seed, each.nan) for each in found] == [
        ("soup", 0, "error"),
        ("drawn", 3, "error"),
    ]
    assert found[0].labels == ("a", "b", "c", "soup", "drawn")


@pytest.mark.parametrize(
    "changed",
    [
        ({**SOUP, "parameters": {"weight": [0.5, 0.6]}}, DRAWN, WRITTEN),
        ({**SOUP, "dtype": "bfloat16"}, DRAWN, WRITTEN),
        ({**SOUP, "models": ["b", "a"]}, DRAWN, WRITTEN),
        ({**SOUP, "nan": "pass"}, DRAWN, WRITTEN),
        (SOUP, {**DRAWN, "seed": 4}, WRITTEN),
        (SOUP, {**DRAWN, "models": [{"model": "c", "label": "other"}]}, WRITTEN),
        (SOUP, {**DRAWN, "keep": [UP]}, WRITTEN),
    ],
)
def test_another_stage_is_another_merge(made: Plan, changed: tuple[Document, ...]) -> None:
    assert staged(*changed).digest != made.digest


def test_the_digest_is_that_of_the_graph_and_not_of_its_text(made: Plan) -> None:
    assert staged(WRITTEN, DRAWN, SOUP).digest == made.digest
    assert staged(SOUP, DRAWN, WRITTEN, threads=1, tile_elements=256).digest == made.digest


def test_a_unit_travels_with_its_stages(made: Plan) -> None:
    unit = made.units[0]
    again = pickle.loads(pickle.dumps(unit))

    assert again == unit
    assert again.nodes[0].inputs[0].inner.inputs[0] is again.nodes[0].inputs[1]


def test_stages_count_towards_the_size_of_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymerge.plan import units

    monkeypatch.setattr(units, "MAX_UNIT_TENSORS", 6)
    # Three merges a tensor: two tensors a unit.
    assert [len(unit.nodes) for unit in staged(SOUP, DRAWN, WRITTEN).units] == [2, 2, 1]


def test_stages_settle_the_head_for_themselves() -> None:
    tied = {"tie_word_embeddings": True}
    catalogs = [
        catalog("a", TIED, config=tied),
        catalog("b", TIED, config=tied),
        catalog("c", MODEL, config={"tie_word_embeddings": False}),
    ]
    made = staged(SOUP, DRAWN, WRITTEN, catalogs=catalogs)

    assert [stage.tie and stage.tie.stand_ins for stage in made.stages] == [None, ("soup",)]
    assert len(made.stages[0].nodes) == len(TIED)
    (drawn, soup) = node(made, HEAD).inputs
    assert (drawn.name, soup.name) == (HEAD, EMBEDDING)
    assert made.tie is not None
    assert made.tie.stand_ins == ("soup",)


# --- memory --------------------------------------------------------------------------------------


@given(st.integers(0, 2**22), st.integers(1, 2**6))
def test_what_is_held_in_stages_stays_within_the_budget(spare: int, blocks: int) -> None:
    made = staged(SOUP, {**DRAWN, "merge_method": "ties"}, WRITTEN)
    tile = 256 * blocks
    for one in made.nodes:
        budget = Budget(thread_bytes=working_bytes(one, tile) + spare, tile_elements=tile)
        assert working_bytes(one, tile) <= budget.peak_bytes(one) <= budget.thread_bytes


def test_nested_buffers_are_part_of_what_a_tensor_needs(made: Plan) -> None:
    top = node(made, UP)
    soup = top.inputs[1].inner
    assert soup is not None
    inside = working_bytes(soup, 256)

    assert top.inputs[1].scratch_bytes(256) == inside > 3 * 2 * 256
    # Once for itself, once for the drawn result that is merged from it.
    assert working_bytes(top, 256) > 2 * inside


def test_every_merge_is_counted_once(made: Plan) -> None:
    assert len(list(with_inner(made.nodes))) == 3 * len(MODEL) == len(list(made.all_nodes))


def test_what_does_not_fit_is_refused_with_its_stages_counted() -> None:
    with pytest.raises(PlanError, match=r"needs .* a thread"):
        staged(SOUP, DRAWN, WRITTEN, memory_bytes=10 * 2**20)


# --- how it is shown -----------------------------------------------------------------------------


def test_the_plan_lists_the_stages(made: Plan) -> None:
    lines = explain(made).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("stages"))

    assert [line[9:] for line in lines[first : first + 5]] == [
        "soup: linear (arXiv:2203.05482), of a, b, bfloat16 -> float32, seed 0",
        "  5  linear  span  weight 0.5, normalize true",
        "drawn: dare_linear (arXiv:2311.03099), of c on soup, bfloat16, float32 -> float32, seed 3",
        "  5  dare_linear  delta  weight 1, density 0.5, normalize false, rescale true, lambda 1",
        "written: that of soup on drawn",
    ]
    assert any(
        "results of stages are merged as they are read: 5 once, 10 once and" in line
        for line in lines
    )


def test_a_tensor_s_graph_has_its_stages_inside(made: Plan) -> None:
    read = "model.safetensors  bytes 2048-4096  bfloat16 [64, 16]"
    lines = explain_tensor(made, UP).splitlines()

    assert lines[:4] == [
        UP,
        "|- reads",
        "|  |- drawn  stage  float32 [64, 16]",
        "|  |  |- reads",
    ]
    assert f"|  |  |  |  |  |- a  {read}  weight 0.5, coefficient 0.5" in lines
    assert "|  |  `- dare_linear" in lines
    assert "|     `- linear" in lines
    assert lines[-2:][0] == "`- writes"


def test_the_document_has_every_stage_and_every_step(made: Plan) -> None:
    document = json.loads(json.dumps(as_json(made)))
    soup, drawn, written = document["stages"]

    assert [each["name"] for each in document["stages"]] == ["soup", "drawn", None]
    assert soup["sources"] == [
        {"label": "a", "source": 0, "base": False},
        {"label": "b", "source": 1, "base": False},
    ]
    assert drawn["sources"][0] == {"label": "soup", "stage": 0, "base": True}
    assert (drawn["method"], drawn["seed"], drawn["tensors"]) == ("dare_linear", 3, len(MODEL))
    assert written["sources"][0] == {"label": "drawn", "stage": 1, "base": True}
    methods = {step["index"]: step["method"] for step in document["steps"]}
    for tensor in document["tensors"]:
        outer, inner = tensor["inputs"]
        assert (outer["stage"], inner["stage"], outer["dtype"]) == (1, 0, "F32")
        assert [methods[each["step"]] for each in (outer, inner)] == ["dare_linear", "linear"]
        assert [each["source"] for each in inner["inputs"]] == [0, 1]
    assert document["results"] == {"once": 5, "held": 10, "again": 0, "most_sweeps": 1}


def test_a_recipe_of_one_stage_has_none() -> None:
    alone = staged({**SOUP})
    assert (as_json(alone)["stages"], alone.stages) == ([], ())
    assert "stages" not in explain(alone)


def test_the_card_has_a_row_for_every_stage(made: Plan) -> None:
    card = model_card(made).decode()

    assert "- merge\n- raymerge\n- linear\n- dare_linear\n- slerp\n" in card
    assert "base_model:\n- a\n- b\n- c\n" in card
    assert "| a | in soup, config and tokenizer |  |  |" in card
    assert "| drawn | dare_linear | c on soup | weight 1, density 0.5" in card
    assert "| output | slerp | soup on drawn | t 0.5, seed 0 |" in card
    # Seeds differ: one for all would be another merge.
    assert "raymerge merge recipe.yaml OUT`" in card
    same = staged(SOUP, {**DRAWN, "seed": 0}, WRITTEN)
    assert "raymerge merge recipe.yaml OUT --seed 0`" in model_card(same).decode()
