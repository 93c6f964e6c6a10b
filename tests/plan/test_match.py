"""Which tensors the output has: nothing is left out that the recipe did not name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.match import Match, inputs_of, match, twins
from raymerge.plan.steps import KEEP
from raymerge.plan.views import views
from tests.plans import DOWN, EMBEDDING, HEAD, MODEL, NORM, TIED, UP, catalog, plan, recipe, without

SAYS_TIED, SAYS_UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
MTP = "model.mtp.fc.weight"
WITH_MTP = {**MODEL, MTP: (DType.BF16, (16, 16))}


def matched(*catalogs: Catalog, base: str | None = None, **top: Any) -> Match:
    labels = [catalog.label for catalog in catalogs if catalog.label != base]
    method = "task_arithmetic" if base else "linear"
    return match(recipe(method, *labels, base=base, **top), views(catalogs))


def test_sources_of_one_skeleton_need_no_word() -> None:
    found = matched(catalog("a"), catalog("b"))

    assert found.names == tuple(MODEL)
    assert (found.kept, found.dropped) == (frozenset(), ())


def test_the_output_has_the_donors_order_whatever_the_others_have() -> None:
    backwards = {name: MODEL[name] for name in reversed(list(MODEL))}

    assert matched(catalog("a", backwards), catalog("b")).names == tuple(backwards)
    assert matched(catalog("base", backwards), catalog("a"), base="base").names == tuple(backwards)


@pytest.mark.parametrize(
    ("catalogs", "source", "tensor", "says"),
    [
        pytest.param(
            [catalog("a"), catalog("b", without(MODEL, UP))],
            "b",
            UP,
            f"b lacks 1 tensors that other sources have: {UP}. To copy them from a write `keep:`",
            id="missing from a source that is not the donor",
        ),
        pytest.param(
            [catalog("a"), catalog("b", WITH_MTP)],
            "a",
            MTP,
            f"a lacks 1 tensors that other sources have: {MTP}. To leave them out write `drop:`",
            id="extra in a source, so the donor has none to copy",
        ),
        pytest.param(
            [catalog("a", WITH_MTP), catalog("b", WITH_MTP), catalog("c")],
            "c",
            MTP,
            f"for the first: `[{MTP}]`",
            id="missing from the last of three",
        ),
        pytest.param(
            [catalog("a"), catalog("b", {NORM: MODEL[NORM], HEAD: MODEL[HEAD]})],
            "b",
            EMBEDDING,
            f"b lacks 3 tensors that other sources have: {EMBEDDING}, {UP}, {DOWN}. ",
            id="several missing",
        ),
    ],
)
def test_what_one_source_lacks_is_refused_until_the_recipe_says_what_becomes_of_it(
    catalogs: list[Catalog], source: str, tensor: str, says: str
) -> None:
    with pytest.raises(PlanError) as caught:
        matched(*catalogs)

    assert says in caught.value.message
    assert (caught.value.source, caught.value.tensor) == (source, tensor)


def test_beyond_three_names_the_others_are_counted() -> None:
    lacking = catalog("b", {HEAD: MODEL[HEAD]})

    with pytest.raises(
        PlanError, match=rf"lacks 4 tensors .*: {EMBEDDING}, {UP}, {DOWN} and 1 mor"
    ):
        matched(catalog("a"), lacking)


def test_a_dropped_tensor_may_be_anywhere_and_is_listed() -> None:
    found = matched(catalog("a"), catalog("b", WITH_MTP), drop=["*.mtp.*", NORM])

    assert found.names == (EMBEDDING, UP, DOWN, HEAD)
    assert found.dropped == (NORM, MTP)


def test_a_kept_tensor_is_the_donors_and_need_not_be_elsewhere() -> None:
    catalogs = [catalog("base", WITH_MTP), catalog("a"), catalog("b")]
    merge = recipe("task_arithmetic", "a", "b", base="base", keep="*.mtp.*")

    node = next(node for node in plan(merge, catalogs).nodes if node.slot.name == MTP)

    assert node.step is KEEP
    assert [read.source for read in node.inputs] == [0]


def test_keep_does_not_conjure_up_what_the_donor_lacks() -> None:
    with pytest.raises(PlanError, match="keep: no tensor of a, which is copied from, matches"):
        matched(catalog("a"), catalog("b", WITH_MTP), keep=[MTP])


def test_a_kept_head_is_the_embedding_of_a_donor_that_ties_it() -> None:
    tied = {name: kind for name, kind in MODEL.items() if name != HEAD}
    catalogs = [
        catalog("base", tied, config={"tie_word_embeddings": True}),
        catalog("a", MODEL, config={"tie_word_embeddings": False}),
    ]
    merge = recipe("task_arithmetic", "a", base="base", keep=HEAD)

    node = next(node for node in plan(merge, catalogs).nodes if node.slot.name == HEAD)

    assert node.step is KEEP
    assert [read.name for read in node.inputs] == [EMBEDDING]


def test_an_embedding_that_is_also_the_head_is_not_dropped_alone() -> None:
    catalogs = [catalog(label, MODEL, config={"tie_word_embeddings": True}) for label in "ab"]

    with pytest.raises(PlanError, match="drop both, or neither"):
        matched(*catalogs, drop=[EMBEDDING])


def test_drop_wins_over_keep() -> None:
    found = matched(catalog("a"), catalog("b"), drop=[NORM], keep=["*"])

    assert NORM in found.dropped
    assert NORM not in found.kept


@pytest.mark.parametrize("key", ["drop", "keep"])
def test_a_pattern_that_matches_nothing_is_a_mistake(key: str) -> None:
    with pytest.raises(PlanError, match=rf"r.yaml: {key}: no tensor of .* matches 'norm'"):
        matched(catalog("a"), catalog("b"), **dict[str, Any]({key: ["norm"]}))


def test_of_many_other_shapes_three_are_named() -> None:
    reshaped = {name: (DType.BF16, (*shape, 3)) for name, (_, shape) in MODEL.items()}
    names = list(MODEL)
    with pytest.raises(PlanError) as caught:
        plan(recipe("linear", "a", "b"), [catalog("a"), catalog("b", reshaped)])
    assert f" So do {len(names) - 1} more: " in caught.value.message
    assert sum(name in caught.value.message.partition("So do")[2] for name in names) == 2


def test_another_shape_is_refused_with_both_shapes_and_labels() -> None:
    reshaped = {**MODEL, UP: (DType.BF16, (40, 16))}

    with pytest.raises(PlanError) as caught:
        plan(recipe("linear", "a", "b"), [catalog("a"), catalog("b", reshaped)])

    assert "has shape [64, 16] in a and [40, 16] in b" in caught.value.message
    assert f"`drop: [{UP}]`" in caught.value.message
    assert (caught.value.source, caught.value.tensor) == ("b", UP)


@pytest.mark.parametrize("key", ["drop", "keep"])
def test_another_shape_is_accepted_where_nothing_is_merged(key: str) -> None:
    reshaped = {**MODEL, UP: (DType.BF16, (8, 16))}
    merge = recipe("linear", "a", "b", **dict[str, Any]({key: [UP]}))

    made = plan(merge, [catalog("a"), catalog("b", reshaped)])

    shapes = {node.slot.name: node.slot.shape for node in made.nodes}
    assert shapes.get(UP) == (MODEL[UP][1] if key == "keep" else None)


# --- tied heads ----------------------------------------------------------------------------------


def test_a_head_that_no_source_stores_is_not_written() -> None:
    found = matched(catalog("a", TIED, config=SAYS_TIED), catalog("b", TIED))

    assert found.names == tuple(TIED)


def test_a_head_stored_beside_a_config_that_says_tied_is_compared_and_not_written() -> None:
    catalogs = [catalog("a", config=SAYS_TIED), catalog("b", TIED, config=SAYS_TIED)]
    made = plan(recipe("linear", "a", "b"), catalogs)

    assert HEAD not in {node.slot.name for node in made.nodes}
    embedding = next(node for node in made.nodes if node.slot.name == EMBEDDING)
    compared = [(a.source, a.name, b.name) for a, b in embedding.twins]
    assert compared == [(0, HEAD, EMBEDDING)]


def test_where_one_head_is_its_own_the_tied_sources_supply_their_embedding() -> None:
    catalogs = [catalog("a", config=SAYS_UNTIED), catalog("b", TIED, config=SAYS_TIED)]
    made = plan(recipe("linear", "a", "b"), catalogs)

    head = next(node for node in made.nodes if node.slot.name == HEAD)
    assert [read.name for read in head.inputs] == [HEAD, EMBEDDING]


def test_a_dropped_head_is_not_compared_any_more() -> None:
    # The advice given where the bytes differ.
    catalogs = [catalog("a", config=SAYS_TIED), catalog("b", config=SAYS_TIED)]
    found = matched(*catalogs)

    assert len(twins(found, views(catalogs))) == 2
    assert twins(matched(*catalogs, drop=[HEAD]), views(catalogs)) == ()


def test_inputs_come_in_the_order_asked_for() -> None:
    catalogs = [catalog("a"), catalog("b"), catalog("c")]

    assert [read.source for read in inputs_of(UP, views(catalogs), [2, 0, 1], None)] == [2, 0, 1]


names = st.sampled_from([f"layers.{i}.weight" for i in range(8)])


@settings(deadline=None)
@given(held=st.lists(st.frozensets(names, min_size=1), min_size=1, max_size=4), everywhere=names)
def test_every_tensor_of_every_source_is_written_or_named_as_dropped(
    held: list[frozenset[str]], everywhere: str
) -> None:
    held = [names | {everywhere} for names in held]
    catalogs = [
        catalog(f"s{i}", dict.fromkeys(sorted(names), (DType.BF16, (2,))))
        for i, names in enumerate(held)
    ]
    partial = sorted(frozenset.union(*held) - frozenset.intersection(*held))

    if partial:
        with pytest.raises(PlanError):
            matched(*catalogs)
    drop: dict[str, Any] = {"drop": partial} if partial else {}
    found = matched(*catalogs, **drop)

    assert {*found.names, *found.dropped} == frozenset.union(*held)
    assert not {*found.names} & {*found.dropped}
