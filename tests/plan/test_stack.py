"""Slices and modules over sources: which tensor of which source becomes which of the output."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.build import Plan
from raymerge.plan.explain import explain
from raymerge.plan.explain_tensor import explain_tensor
from raymerge.plan.graph import CopyStep, TensorNode
from raymerge.plan.steps import COPY, KEEP
from raymerge.recipe import loads
from tests.plans import EMBEDDING, HEAD, NORM, Tensors, catalog, plan

VECTOR = (DType.F32, (4,))
MATRIX = (DType.F32, (8, 4))
UP = "model.layers.{}.mlp.up_proj.weight".format
ATTENTION = "model.layers.{}.self_attn.q_proj.weight".format


def layered(layers: int, *, tied: bool = False, stack: str = "model.layers") -> Tensors:
    """A language model of so many layers, its tensors in no good order."""
    inside = {
        f"{stack}.{layer}.{part}.weight": VECTOR
        for layer in sorted(range(layers), key=str)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    }
    head = {} if tied else {HEAD: MATRIX}
    return {**head, **inside, NORM: VECTOR, EMBEDDING: MATRIX}


def take(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [start, stop], "parameters": parameters or None}


def planned(
    method: str, body: dict[str, Any], sources: dict[str, Tensors] | None = None, **configs: Any
) -> Plan:
    """The plan of a recipe over sources of six layers each if none are given."""
    recipe = loads(json.dumps({"merge_method": method, **body}), path="r.yaml")
    catalogs = [
        catalog(
            ref.label,
            (sources or {}).get(ref.label, layered(6)),
            config=configs.get(ref.label),
        )
        for ref in recipe.all_sources
    ]
    return plan(recipe, catalogs)


def nodes(made: Plan) -> dict[str, TensorNode]:
    return {node.slot.name: node for node in made.nodes}


def inputs(made: Plan, name: str) -> list[str]:
    """`a:model.layers.3.x` for each input of a tensor of the output."""
    return [f"{made.sources[one.source].label}:{one.name}" for one in nodes(made)[name].inputs]


def knobs(made: Plan, name: str) -> dict[str, Any]:
    step = nodes(made)[name].step
    assert not isinstance(step, CopyStep)
    return dict(step.knobs)


def slices(*of: list[dict[str, Any]], **top: Any) -> dict[str, Any]:
    return {"slices": [{"sources": sources} for sources in of], **top}


# --- names and inputs ----------------------------------------------------------------------------


def test_layers_are_numbered_through_and_read_where_they_stand() -> None:
    made = planned("passthrough", slices([take("a", 0, 2)], [take("b", 1, 3)], [take("a", 1, 2)]))
    origin = ["a:0", "a:1", "b:1", "b:2", "a:1"]
    for layer, where in enumerate(origin):
        label, number = where.split(":")
        assert inputs(made, UP(layer)) == [f"{label}:{UP(number)}"]
    assert list(nodes(made)) == [
        EMBEDDING,
        *(name(layer) for layer in range(5) for name in (ATTENTION, UP)),
        HEAD,
        NORM,
    ]


def test_equal_bytes_stay_a_copy_and_every_slice_shares_its_step() -> None:
    made = planned("passthrough", slices([take("a", 0, 6)], [take("b", 0, 6)]))
    assert {id(node.step) for node in made.nodes} == {id(COPY)}


@given(
    ranges=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(1, 6)).filter(
            lambda r: r[1] < r[2]
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=40)
def test_the_output_has_exactly_the_layers_taken_in_order(
    ranges: list[tuple[str, int, int]],
) -> None:
    made = planned("passthrough", slices(*([take(*r)] for r in ranges)))
    taken = [(label, number) for label, start, stop in ranges for number in range(start, stop)]
    (stack,) = made.stacks
    labels = [source.label for source in made.sources]
    assert [(labels[position], layer) for position, layer in stack.origin] == taken
    assert inputs(made, EMBEDDING) == [f"{ranges[0][0]}:{EMBEDDING}"]
    assert inputs(made, HEAD) == [f"{ranges[-1][0]}:{HEAD}"]
    assert len(made.nodes) == 2 * len(taken) + 3
    for layer, (label, number) in enumerate(taken):
        assert inputs(made, UP(layer)) == [f"{label}:{UP(number)}"]


def test_what_stands_before_and_after_comes_from_the_first_and_the_last_slice() -> None:
    """mergekit loses sources of the last slice from norm and head if the first has fewer."""
    body = slices([take("a", 0, 2)], [take("a", 2, 4), take("b", 2, 4)])
    made = planned("linear", {**body, "parameters": {"weight": 1}})
    assert inputs(made, EMBEDDING) == [f"a:{EMBEDDING}"]
    assert inputs(made, NORM) == [f"a:{NORM}", f"b:{NORM}"]
    assert inputs(made, HEAD) == [f"a:{HEAD}", f"b:{HEAD}"]


def test_sources_of_a_slice_may_give_different_layers() -> None:
    body = slices([take("a", 2, 4), take("base", 0, 2), take("b", 4, 6)], base_model="base")
    made = planned("task_arithmetic", {**body, "parameters": {"weight": 1}})
    assert inputs(made, UP(1)) == [f"base:{UP(1)}", f"a:{UP(3)}", f"b:{UP(5)}"]
    assert made.donor.label == "base"


def test_an_input_is_shown_under_its_own_name() -> None:
    made = planned("passthrough", slices([take("a", 3, 5)]))
    text = explain_tensor(made, UP(0))
    assert text.splitlines()[0] == UP(0)
    assert UP(3) in text.splitlines()[2]


@pytest.mark.parametrize("stack", ["transformer.h", "h", "bert.encoder.layer", ""])
def test_any_name_with_a_number_is_a_layer(stack: str) -> None:
    tensors = {**layered(3, stack=stack)} if stack else {f"{n}.w": VECTOR for n in range(3)}
    made = planned("passthrough", slices([take("a", 1, 3)]), {"a": tensors})
    assert made.stacks[0].name == stack
    first = next(name for name in nodes(made) if name.startswith(f"{stack}.0." if stack else "0."))
    assert inputs(made, first) == [f"a:{first.replace('0.', '1.', 1)}"]


# --- knobs ---------------------------------------------------------------------------------------


def test_a_gradient_runs_inside_its_slice() -> None:
    """t is 0 outside the layers, 1 in a slice of one layer."""
    body = slices(
        [take("base", 0, 3), take("a", 0, 3)],
        [take("base", 3, 4), take("a", 3, 4)],
        [take("base", 4, 6), take("a", 4, 6)],
        base_model="base",
        parameters={"t": [0.25, 0.75]},
    )
    made = planned("slerp", body)
    assert [knobs(made, UP(layer))["t"] for layer in range(6)] == [
        0.25,
        0.5,
        0.75,
        0.75,
        0.25,
        0.75,
    ]
    assert [knobs(made, name)["t"] for name in (EMBEDDING, NORM, HEAD)] == [0.25] * 3


def test_filters_of_a_source_see_its_own_names_and_shared_ones_the_outputs() -> None:
    by_two = [{"filter": "layers.2.", "value": 1}, {"value": 0.5}]
    body = slices(
        [take("base", 2, 4), take("a", 2, 4, weight=by_two)],
        [take("base", 0, 2), take("a", 0, 2, weight=by_two)],
        base_model="base",
        parameters={"lambda": by_two},
    )
    made = planned("task_arithmetic", body)
    assert [knobs(made, UP(n))["weight"] for n in range(4)] == [(1.0,), (0.5,), (0.5,), (0.5,)]
    assert [knobs(made, UP(n))["lambda"] for n in range(4)] == [0.5, 0.5, 1.0, 0.5]


def test_slices_of_different_sources_are_shown_in_one_table() -> None:
    body = slices([take("a", 0, 6)], [take("a", 0, 6), take("b", 0, 6)])
    weight = {"weight": [0.1, 0.9]}
    text = explain(planned("linear", {**body, "parameters": weight}))
    assert [line.split()[2:6] for line in text.splitlines() if " span " in line] == [
        ["span", "weight", "0.1..0.9,", "normalize"]
    ]


# --- keep, drop, ties ----------------------------------------------------------------------------


def test_what_is_kept_comes_from_the_donor_and_in_a_slice_from_its_own() -> None:
    body = slices([take("a", 0, 2)], [take("b", 4, 6)], keep=["*norm*", "*q_proj*", HEAD])
    made = planned("passthrough", {**body, "parameters": {"scale": 2}})
    for name, where in {
        NORM: f"a:{NORM}",
        HEAD: f"a:{HEAD}",
        ATTENTION(1): f"a:{ATTENTION(1)}",
        ATTENTION(2): f"b:{ATTENTION(4)}",
    }.items():
        assert nodes(made)[name].step == KEEP
        assert inputs(made, name) == [where]
    assert inputs(made, EMBEDDING) == [f"a:{EMBEDDING}"]
    assert nodes(made)[EMBEDDING].step != KEEP


def test_drop_speaks_of_the_outputs_names() -> None:
    made = planned("passthrough", slices([take("a", 2, 4)], drop=[UP(0)]))
    assert UP(0) not in nodes(made)
    assert UP(1) in nodes(made)
    with pytest.raises(PlanError, match=r"drop: no tensor of any source matches"):
        planned("passthrough", slices([take("a", 2, 4)], drop=[UP(3)]))


def test_a_tied_source_gives_its_embedding_for_the_head() -> None:
    body = slices([take("a", 0, 2)], [take("b", 2, 4)])
    made = planned("passthrough", body, {"a": layered(4), "b": layered(4, tied=True)})
    assert inputs(made, HEAD) == [f"b:{EMBEDDING}"]
    both = planned("passthrough", body, dict.fromkeys("ab", layered(4, tied=True)))
    assert HEAD not in nodes(both)


# --- more than one stack -------------------------------------------------------------------------

SEEING: Tensors = {
    "model.language_model.embed_tokens.weight": MATRIX,
    **{f"model.language_model.layers.{n}.mlp.weight": VECTOR for n in range(4)},
    "model.language_model.norm.weight": VECTOR,
    **{f"model.visual.blocks.{n}.mlp.weight": VECTOR for n in range(3)},
    "model.visual.patch_embed.weight": MATRIX,
    "lm_head.weight": MATRIX,
}
"""A vision-language model."""


def test_two_stacks_need_a_module_or_one_of_them_kept_or_dropped() -> None:
    sources = {"a": SEEING}
    with pytest.raises(PlanError) as caught:
        planned("passthrough", slices([take("a", 0, 2)]), sources)
    assert str(caught.value) == (
        "r.yaml: slices: a has 2 stacks of layers: model.language_model.layers (4 layers), "
        "model.visual.blocks (3 layers). Say which to slice by writing the slices under `modules:` "
        "with its name or a prefix of it, and copy the others with `keep:` or leave them out with "
        "`drop:`"
    )
    kept = planned("passthrough", slices([take("a", 1, 3)], keep="*visual*"), sources)
    assert inputs(kept, "model.visual.blocks.2.mlp.weight")
    assert inputs(kept, "model.language_model.layers.0.mlp.weight") == [
        "a:model.language_model.layers.1.mlp.weight"
    ]
    assert len(kept.nodes) == 2 + 3 + 1 + 3
    dropped = planned("passthrough", slices([take("a", 1, 3)], drop="*visual*"), sources)
    assert len(dropped.dropped) == 4


def test_a_module_is_merged_and_the_rest_is_copied() -> None:
    modules = {"language_model": {"models": ["a", "b"]}}
    body = {"modules": modules, "base_model": "base", "parameters": {"weight": 1}}
    sources = dict.fromkeys(("base", "a", "b"), SEEING)
    made = planned("task_arithmetic", {**body, "keep": ["*visual*", HEAD]}, sources)
    merged = [name for name, node in nodes(made).items() if node.step != KEEP]
    assert set(merged) == {name for name in SEEING if "language_model" in name}
    assert set(nodes(made)) == set(SEEING)
    assert inputs(made, HEAD) == [f"base:{HEAD}"]


def test_a_source_needs_the_modules_tensors_and_no_others() -> None:
    language = {name: kind for name, kind in SEEING.items() if "language_model" in name}
    modules = {"language_model": {"models": ["a", "b"]}}
    body = {"modules": modules, "parameters": {"weight": 1}, "keep": ["*visual*", HEAD]}
    made = planned("linear", body, {"a": SEEING, "b": language})
    assert len(made.nodes) == len(SEEING)


def test_a_tensor_in_no_module_is_never_lost_in_silence() -> None:
    body = {"modules": {"language_model": {"models": ["a"]}}, "keep": [HEAD]}
    with pytest.raises(PlanError) as caught:
        planned("passthrough", body, {"a": SEEING})
    assert str(caught.value) == (
        "r.yaml: modules: 4 tensors are in none of its modules: model.visual.blocks.0.mlp.weight, "
        "model.visual.blocks.1.mlp.weight, model.visual.blocks.2.mlp.weight and 1 more. To copy "
        "them from a write `keep:` with their names or a pattern, to leave them out `drop:`, to "
        "merge them list their module"
    )


def test_modules_have_slices_and_models_side_by_side() -> None:
    modules = {
        "language_model": {
            "slices": [{"sources": [take("a", 0, 2)]}, {"sources": [take("b", 0, 2)]}]
        },
        "visual": {"models": ["b"], "parameters": {"scale": [1, 0.5]}},
        "lm_head": {"models": ["a"]},
    }
    made = planned("passthrough", {"modules": modules}, {"a": SEEING, "b": SEEING})
    language = "model.language_model.layers.{}.mlp.weight".format
    assert [inputs(made, language(n))[0][0] for n in range(4)] == ["a", "a", "b", "b"]
    assert inputs(made, "model.language_model.norm.weight")[0][0] == "b"
    assert inputs(made, HEAD)[0][0] == "a"
    scales = [knobs(made, f"model.visual.blocks.{n}.mlp.weight")["scale"] for n in (1, 2)]
    assert scales == [(0.75,), (0.5,)]


QWEN: Tensors = {
    "model.embed_tokens.weight": MATRIX,
    **{f"model.layers.{n}.mlp.weight": VECTOR for n in range(4)},
    "visual.patch_embed.proj.weight": MATRIX,
    **{f"visual.blocks.{n}.mlp.weight": VECTOR for n in range(3)},
    "visual.merger.mlp.0.weight": MATRIX,
    "visual.deepstack_merger_list.0.norm.weight": VECTOR,
    "lm_head.weight": MATRIX,
}
LLAVA: Tensors = {
    **{f"language_model.model.layers.{n}.mlp.weight": VECTOR for n in range(4)},
    "language_model.lm_head.weight": MATRIX,
    **{f"vision_tower.vision_model.encoder.layers.{n}.w": VECTOR for n in range(3)},
    "multi_modal_projector.linear_1.weight": MATRIX,
}


@pytest.mark.parametrize(
    ("model", "sees", "joins"),
    [
        (QWEN, ("visual.patch", "visual.blocks"), ("visual.merger", "visual.deepstack")),
        (LLAVA, ("vision_tower",), ("multi_modal_projector",)),
        (
            {f"model.{name}".replace("model.lm_head", "lm_head"): t for name, t in LLAVA.items()},
            ("model.vision_tower",),
            ("model.multi_modal_projector",),
        ),
    ],
)
def test_modules_by_mergekit_s_names(
    model: Tensors, sees: tuple[str, ...], joins: tuple[str, ...]
) -> None:
    of = {"text_decoder": "a", "vision_tower": "b", "multi_modal_projector": "c"}
    body = {"modules": {name: {"models": [source]} for name, source in of.items()}}
    made = planned("passthrough", body, dict.fromkeys("abc", model))
    for name in model:
        wanted = "b" if name.startswith(sees) else "c" if name.startswith(joins) else "a"
        assert inputs(made, name) == [f"{wanted}:{name}"]


def test_text_alone_is_merged_onto_a_model_that_sees() -> None:
    text = {n: t for n, t in QWEN.items() if not n.startswith("visual")}
    modules = {"text_decoder": {"models": ["t"]}}
    body = {"modules": modules, "base_model": "a", "parameters": {"weight": 1}}
    sources = {"a": QWEN, "t": text}
    made = planned("task_arithmetic", body | {"keep": "visual*"}, sources)
    assert inputs(made, HEAD) == [f"a:{HEAD}", f"t:{HEAD}"]


def test_slices_of_a_text_decoder() -> None:
    text = {"slices": [{"sources": [take("a", 0, 2)]}, {"sources": [take("b", 0, 2)]}]}
    body = {"modules": {"text_decoder": text}, "keep": "visual*"}
    made = planned("passthrough", body, {"a": QWEN, "b": QWEN})
    assert inputs(made, "model.layers.2.mlp.weight") == ["b:model.layers.0.mlp.weight"]
    both = {"modules": {name: {"models": ["a"]} for name in ("vision_tower", "visual")}}
    with pytest.raises(PlanError, match=r"visual \(visual\) lies in vision_tower \(visual but for"):
        planned("passthrough", both, {"a": QWEN})


@pytest.mark.parametrize("name", ["model.layers", "layers", "model", "default"])
def test_a_module_may_be_a_stack_a_prefix_or_the_whole_model(name: str) -> None:
    body = {"modules": {name: {"slices": [{"sources": [take("a", 0, 2)]}]}}, "keep": ["*"]}
    made = planned("passthrough", body)
    assert len(made.nodes) == 2 * 2 + 3
    assert made.stacks[0].name == "model.layers"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            ["text"],
            (
                "r.yaml:1: modules: no tensor name has 'text' before its layer number; modules are "
                "prefixes such as model.language_model, model.visual, lm_head."
            ),
        ),
        (
            ["langauge_model"],
            (
                "r.yaml:1: modules: no tensor name has 'langauge_model' before its layer number; "
                "modules are prefixes such as model.language_model, model.visual, lm_head. Did you "
                "mean 'language_model'?"
            ),
        ),
        (
            ["text_decode"],
            (
                "r.yaml:1: modules: no tensor name has 'text_decode' before its layer number; "
                "modules are prefixes such as model.language_model, model.visual, lm_head. Did you "
                "mean 'text_decoder'?"
            ),
        ),
        (
            ["model", "visual"],
            (
                "r.yaml: modules: visual (model.visual) lies in model (model); a tensor belongs to "
                "one module"
            ),
        ),
    ],
)
def test_a_module_that_is_none_is_refused(modules: list[str], message: str) -> None:
    body = {"modules": {name: {"models": ["a"]} for name in modules}}
    with pytest.raises(PlanError) as caught:
        planned("passthrough", body, {"a": SEEING})
    assert str(caught.value) == message


def test_a_name_that_stands_in_two_places_is_refused() -> None:
    twins = {"text.tower.layers.0.w": VECTOR, "vision.tower.layers.0.w": VECTOR}
    with pytest.raises(PlanError, match=r"'tower' stands in 2 places, text.tower, vision.tower;"):
        planned("passthrough", {"modules": {"tower": {"models": ["a"]}}}, {"a": twins})


# --- impossible ranges ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"a": layered(4)},
            (
                "r.yaml:1: layer_range is [2, 6], and a has 4 layers (model.layers.0 to "
                "model.layers.3); the range may end at 4 at most"
            ),
        ),
        (
            {"a": {n: k for n, k in layered(6).items() if "layers.3." not in n}},
            "r.yaml:1: layer_range is [2, 6], and a has no tensor of layer model.layers.3",
        ),
        (
            {"a": {EMBEDDING: MATRIX}},
            (
                "r.yaml: slices: a has no layers: no tensor name has a number in it, as "
                "model.layers.0.mlp.up_proj.weight has"
            ),
        ),
    ],
)
def test_a_range_that_the_model_does_not_have_is_refused(
    sources: dict[str, Tensors], message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        planned("passthrough", slices([take("a", 2, 6)]), sources)
    assert str(caught.value) == message
    assert caught.value.source == "a"


def test_sources_of_two_architectures_are_refused() -> None:
    body = slices([take("a", 0, 2)], [take("b", 0, 2)])
    with pytest.raises(PlanError, match=r"a has its layers under model.layers, b under h; sources"):
        planned("passthrough", body, {"b": layered(4, stack="h")})


def test_layers_of_different_kinds_do_not_merge() -> None:
    hybrid = {n: k for n, k in layered(4).items() if n != ATTENTION(1)}
    body = slices([take("a", 0, 2), take("b", 0, 2)], parameters={"weight": 1})
    with pytest.raises(PlanError, match=r"b lacks 1 tensors that other sources have"):
        planned("linear", body, {"b": hybrid})


def test_layers_that_are_only_copied_have_to_be_of_one_architecture_too() -> None:
    body = slices([take("a", 0, 2)], [take("b", 1, 3)])
    bias = {"model.layers.2.self_attn.q_proj.bias": VECTOR}
    with pytest.raises(PlanError) as caught:
        planned("passthrough", body, {"b": {**layered(4), **bias}})
    assert str(caught.value) == (
        "r.yaml: slices: layer 2 of b is like no layer of a, whose config.json the output gets; "
        "the nearest differs in self_attn.q_proj.bias [4]. Slices must be of one architecture and "
        "width"
    )
    planned("passthrough", {**body, "drop": "*.bias"}, {"b": {**layered(4), **bias}})
    wide = {n: (DType.F32, (5,)) if "up_proj" in n else k for n, k in layered(4).items()}
    with pytest.raises(
        PlanError, match=r"layer 1 of b is .* differs in mlp.up_proj.weight \[4\], ml"
    ):
        planned("passthrough", body, {"b": wide})
    with pytest.raises(
        PlanError, match=r"lm_head.weight comes from b, where it has shape \[9, 4\];"
    ):
        planned("passthrough", body, {"b": {**layered(4), HEAD: (DType.F32, (9, 4))}})


def test_a_hybrid_model_may_change_the_order_of_its_kinds() -> None:
    hybrid = {n: k for n, k in layered(4).items() if n != ATTENTION(1)}
    made = planned(
        "passthrough", slices([take("a", 0, 2)], [take("b", 1, 3)]), dict.fromkeys("ab", hybrid)
    )
    assert ATTENTION(2) not in nodes(made)


BIAS = "model.layers.{}.self_attn.relative_attention_bias.weight".format
FIRST = {**layered(4), BIAS(0): VECTOR}
"""As T5: the first layer has the position bias of all."""


@pytest.mark.parametrize(
    ("taken", "where", "remedy"),
    [
        (
            [take("a", 1, 4)],
            "in none",
            "Let layer 0 of the output, and no other, be layer 0 of a source",
        ),
        (
            [take("b", 1, 2), take("b", 0, 2)],
            "in layer 1",
            "Let layer 0 of the output, and no other, be layer 0 of a source",
        ),
        (
            [take("a", 0, 2), take("b", 0, 2)],
            "in layers 0 and 2",
            (
                "Let layer 0 of the output, and no other, be layer 0 of a source, or leave out "
                f"what is too much: drop: [{BIAS(2)}]"
            ),
        ),
    ],
)
def test_what_one_layer_has_for_all_stays_where_it_is(
    taken: list[dict[str, Any]], where: str, remedy: str
) -> None:
    with pytest.raises(PlanError) as caught:
        planned("passthrough", slices(*([one] for one in taken)), dict.fromkeys("ab", FIRST))
    label = taken[0]["model"]
    assert str(caught.value) == (
        f"r.yaml: slices: only layer 0 of {label}, whose config.json the output gets, has "
        f"{BIAS(0)}, for all its layers; the output would have it {where}. {remedy}"
    )


@pytest.mark.parametrize(
    ("model", "taken", "dropped", "expected"),
    [
        (FIRST, [take("a", 0, 2), take("b", 1, 4)], None, [0]),
        (FIRST, [take("b", 0, 1), take("b", 2, 4)], None, [0]),
        (FIRST, [take("a", 0, 2), take("b", 0, 2)], BIAS(2), [0]),
        ({**layered(4), BIAS(3): VECTOR}, [take("a", 0, 3), take("b", 1, 4)], None, [5]),
        ({**layered(4), BIAS(2): VECTOR, BIAS(3): VECTOR}, [take("a", 0, 3)], None, [2]),
    ],
    ids=["first", "cut", "repeated, dropped", "last", "two layers"],
)
def test_what_one_layer_has_for_all_is_in_the_output(
    model: Tensors, taken: list[dict[str, Any]], dropped: str | None, expected: list[int]
) -> None:
    body = slices(*([one] for one in taken), **({"drop": [dropped]} if dropped else {}))
    made = nodes(planned("passthrough", body, dict.fromkeys("ab", model)))
    assert [layer for layer in range(7) if BIAS(layer) in made] == expected


def test_a_dense_layer_among_mixtures_may_be_left_out() -> None:
    dense = UP(0)
    mixed = {n: k for n, k in layered(4).items() if "up_proj" not in n} | {dense: VECTOR}
    mixed |= {f"model.layers.{layer}.mlp.experts.0.up_proj.weight": VECTOR for layer in (1, 2, 3)}
    made = planned("passthrough", slices([take("a", 1, 4)]), {"a": mixed})
    assert dense not in nodes(made)


# --- size ----------------------------------------------------------------------------------------


def test_a_large_mixture_of_experts_is_sliced_in_seconds() -> None:
    experts: dict[str, Any] = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight": VECTOR
        for layer in range(40)
        for expert in range(125)
        for part in ("up", "gate", "down")
    }
    half = [{"filter": "up", "value": 0.5}, {"value": 1}]
    body = slices([take("a", 0, 30, scale=half)], [take("a", 10, 40, scale=half)])
    start = time.perf_counter()
    made = planned("passthrough", body, {"a": experts})
    assert time.perf_counter() - start < 10
    assert len(made.nodes) == 60 * 375
    assert len({id(node.step) for node in made.nodes}) == 2
