"""The plan as a whole: dtypes, shared steps, digest, notes, and what it costs to make."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Pin
from raymerge.errors import PlanError, RecipeError
from raymerge.kernels.groups import Group
from raymerge.plan.build import SURVEY_SWEEPS, Plan, PlanOptions, build
from raymerge.plan.graph import DeltaStep, SpanStep, TensorNode
from raymerge.plan.steps import COPY, NOT_FLOATING
from raymerge.recipe import Recipe, loads
from tests.plans import (
    DOWN,
    EMBEDDING,
    GIB,
    HEAD,
    MODEL,
    NORM,
    TIED,
    UP,
    Tensors,
    catalog,
    plan,
    recipe,
    without,
)


def node(made: Plan, name: str) -> TensorNode:
    return next(node for node in made.nodes if node.slot.name == name)


def of_dtype(dtype: DType, *names: str) -> Tensors:
    return {
        name: (dtype if name in names else kind, shape) for name, (kind, shape) in MODEL.items()
    }


# --- inputs, dtypes, steps -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merge", "inputs"),
    [
        (recipe("linear", "a", "b"), ["a", "b"]),
        (recipe("linear", "b", "a"), ["b", "a"]),
        (recipe("linear", "a", base="base"), ["a", "base"]),  # one more source, as in mergekit
        (recipe("ties", "a", "b", base="base"), ["base", "a", "b"]),
        (recipe("task_arithmetic", "b", "a", base="base"), ["base", "b", "a"]),
        (recipe("slerp", "a", base="base", parameters={"t": 0.5}), ["base", "a"]),
        (recipe("nuslerp", "a", "b"), ["a", "b"]),
        (recipe("nuslerp", "a", "b", base="base"), ["base", "a", "b"]),
        (recipe("multislerp", "b", "a", base="base"), ["base", "b", "a"]),
        (recipe("karcher", "a", "b", base="base"), ["a", "b", "base"]),
        (recipe("model_stock", "a", "b", base="base"), ["base", "a", "b"]),
    ],
)
def test_the_base_is_read_first_by_methods_that_are_relative_to_it(
    merge: Recipe, inputs: list[str]
) -> None:
    made = plan(merge)

    labels = [made.sources[read.source].label for read in node(made, UP).inputs]
    assert labels == inputs


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        ((DType.BF16, DType.BF16), None, DType.BF16),
        ((DType.BF16, DType.F32), None, DType.F32),
        ((DType.BF16, DType.F16), None, DType.F32),  # torch's promotion
        ((DType.BF16, DType.F16), "float16", DType.F16),
        ((DType.F64, DType.F32), "float32", DType.F32),
    ],
)
def test_the_dtype_is_the_recipes_or_torchs_promotion(
    stored: tuple[DType, DType], asked: str | None, written: DType
) -> None:
    catalogs = [
        catalog(label, of_dtype(kind, UP)) for label, kind in zip("ab", stored, strict=True)
    ]
    made = plan(recipe("linear", "a", "b", dtype=asked), catalogs)

    assert node(made, UP).slot.dtype is written


def test_float64_needs_a_dtype_to_narrow_it_to() -> None:
    doubles = [catalog(label, of_dtype(DType.F64, UP)) for label in "ab"]

    with pytest.raises(PlanError, match=r"float64 in a source.*`dtype: float32`") as caught:
        plan(recipe("linear", "a", "b"), doubles)
    assert caught.value.tensor == UP


def test_integers_are_copied_whatever_the_dtype_and_compared_over_all_sources() -> None:
    catalogs = [catalog(label, of_dtype(DType.I64, NORM)) for label in "abc"]
    copied = node(plan(recipe("ties", "b", "c", base="a", dtype="float32"), catalogs), NORM)

    assert copied.step is NOT_FLOATING
    assert copied.slot.dtype is DType.I64
    assert len(copied.inputs) == 3


def test_a_tensor_that_is_floating_in_one_source_alone_is_refused() -> None:
    catalogs = [catalog("a"), catalog("b", of_dtype(DType.I64, UP))]

    with pytest.raises(PlanError, match=rf"{UP} is of dtypes BF16, I64 in different sources"):
        plan(recipe("linear", "a", "b"), catalogs)
    assert node(plan(recipe("linear", "a", "b", keep=UP), catalogs), UP).slot.dtype is DType.BF16


def test_passthrough_copies_bytes_unless_it_scales_or_casts() -> None:
    mixed = [catalog("a", of_dtype(DType.F32, NORM))]
    plain = plan(recipe("passthrough", "a"), mixed)
    cast = plan(recipe("passthrough", "a", dtype="bfloat16"), mixed)
    scaled = plan(recipe("passthrough", "a", parameters={"scale": 2}), mixed)

    assert {id(node.step) for node in plain.nodes} == {id(COPY)}
    assert node(cast, UP).step is COPY
    assert isinstance(node(cast, NORM).step, SpanStep)
    assert not any(node.step is COPY for node in scaled.nodes)


def test_equal_knobs_share_one_step() -> None:
    weight = [{"filter": "mlp", "value": [0.2, 0.4]}, {"value": 0.5}]
    names = {
        f"model.layers.{i}.{part}.w": MODEL[NORM] for i in range(4) for part in ("mlp", "attn")
    }
    made = plan(
        recipe("task_arithmetic", "a", base="b", parameters={"weight": weight}),
        [catalog(label, {**names, NORM: MODEL[NORM]}) for label in "ba"],
    )

    # One for each layer's mlp, one for all the rest.
    assert len({id(node.step) for node in made.nodes}) == 5
    assert node(made, "model.layers.2.attn.w").step is node(made, NORM).step


def test_a_gradient_is_resolved_over_the_depth_of_the_model() -> None:
    names = {f"model.layers.{i}.w": MODEL[NORM] for i in range(3)}
    merge = recipe("linear", "a", "b", parameters={"weight": [0.0, 1.0], "normalize": False})
    made = plan(merge, [catalog(label, names) for label in "ab"])

    steps = [node(made, name).step for name in names]
    assert [step.coefficients for step in steps if isinstance(step, SpanStep)] == [
        (0.0, 0.0),
        (0.5, 0.5),
        (1.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("method", "knobs", "line", "message"),
    [
        ("ties", ["weight: 2", "weight: 1", "weight: -1"], 6, "the weights 1 (b), -1 (c) sum to 0"),
        ("linear", ["weight: 2", "weight: -1", "weight: -1"], 4, "the weights 2 (a), -1 (b), -1"),
        ("della", ["epsilon: 0.1", "density: 0.9", "density: 0.5"], 12, "density 0.9 and epsilon"),
        ("della", ["epsilon: 0.1", "epsilon: 0.6", "density: 0.5"], 6, "density 0.5 and epsilon"),
        ("della_linear", ["weight: 2", "weight: 1", "density: 0.9"], 8, "density 0.9 and eps"),
    ],
)
def test_sources_that_a_method_refuses_are_named_with_their_line(
    method: str, knobs: list[str], line: int, message: str
) -> None:
    models = "".join(
        f"  - model: {label}\n    parameters: {{{knob}}}\n"
        for label, knob in zip("abc", knobs, strict=True)
    )
    shared = {
        "della": "  weight: 1\n  density: 0.5\n  epsilon: 0.2\n",
        "della_linear": "  weight: 1\n  density: 0.5\n",
    }.get(method, "  {}\n")
    text = f"merge_method: {method}\nmodels:\n{models}parameters:\n{shared}"
    text += "" if method == "linear" else "base_model: base\n"
    merge = loads(text, path="r.yaml")

    with pytest.raises(PlanError) as caught:
        plan(merge)
    assert str(caught.value).startswith(f"r.yaml:{line}: {method} on {EMBEDDING}: {message}")


def test_what_a_method_refuses_is_a_plan_error_that_names_recipe_and_tensor() -> None:
    merge = recipe("linear", "a", "b", parameters={"weight": 0.0})

    with pytest.raises(PlanError, match=rf"r.yaml: linear on {EMBEDDING}: the weights are all 0"):
        plan(merge)


@pytest.mark.parametrize("base", [None, "base"])
def test_a_base_makes_some_methods_relative(base: str | None) -> None:
    for method in ("nuslerp", "multislerp"):
        step = node(plan(recipe(method, "a", "b", base=base)), UP).step
        assert isinstance(step, SpanStep)
        assert step.relative == (base is not None)


def test_what_is_wrong_with_the_knobs_of_a_method_with_angles_is_said_while_planning() -> None:
    merge = recipe("multislerp", "a", "b", parameters={"weight": 0.0})

    with pytest.raises(PlanError, match=rf"multislerp on {EMBEDDING}: the weights are all 0"):
        plan(merge)


@pytest.mark.parametrize(
    ("method", "knobs", "kind"),
    [
        ("nuslerp", {}, Group.TENSOR),
        ("nuslerp", {"nuslerp_row_wise": True}, Group.TENSOR),
        ("nuslerp", {"nuslerp_flatten": False}, Group.ROW),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, Group.COLUMN),
        ("model_stock", {}, Group.TENSOR),
        ("model_stock", {"filter_wise": True}, Group.ROW),
    ],
)
def test_knobs_choose_what_an_angle_is_taken_over(
    method: str, knobs: dict[str, Any], kind: Group
) -> None:
    made = plan(recipe(method, "a", "b", base="base", parameters=knobs))

    assert node(made, UP).groups.kind is kind
    assert node(made, NORM).groups.kind is Group.TENSOR


def test_a_required_knob_that_covers_no_tensor_is_the_recipes_mistake() -> None:
    weight = [{"filter": "mlp", "value": 0.2}]

    with pytest.raises(RecipeError, match=f"no condition matches tensor {EMBEDDING}"):
        plan(recipe("linear", "a", "b", parameters={"weight": weight}))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({**MODEL, "x.qweight": (DType.I32, (4,)), "x.qzeros": (DType.I32, (4,))}, {}, "GPTQ or"),
        (of_dtype(DType.F8_E4M3, UP), {}, "F8_E4M3 codes"),
        (MODEL, {"quantization_config": {"quant_method": "fp8"}}, "says fp8"),
    ],
)
def test_a_quantised_source_is_refused_by_label_and_scheme(
    tensors: Tensors, config: dict[str, object], says: str
) -> None:
    with pytest.raises(PlanError, match=f"b is quantised: .*{says}") as caught:
        plan(recipe("linear", "a", "b"), [catalog("a"), catalog("b", tensors, config=config)])
    assert caught.value.source == "b"


def test_a_recipe_that_drops_everything_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing is left to write"):
        plan(recipe("linear", "a", "b", drop="*"))


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_runs() -> None:
    with pytest.raises(PlanError, match="--memory"):
        plan(recipe("linear", "a", "b"), memory_bytes=2**20)


# --- notes ---------------------------------------------------------------------------------------


def test_every_narrowing_is_listed_with_its_count() -> None:
    catalogs = [
        catalog("a", of_dtype(DType.F32, UP, DOWN)),
        catalog("b", of_dtype(DType.F16, NORM)),
    ]
    made = plan(recipe("linear", "a", "b", dtype="bfloat16"), catalogs)

    assert "narrowed from F32 to BF16: 3 tensors" in made.notes


def test_float16_to_bfloat16_is_a_narrowing_and_bfloat16_to_float32_is_none() -> None:
    halves = [catalog("a", of_dtype(DType.F16, UP)), catalog("b", of_dtype(DType.F16, UP))]

    assert plan(recipe("linear", "a", "b", dtype="bfloat16"), halves).notes == (
        "narrowed from F16 to BF16: 1 tensors",
    )
    assert plan(recipe("linear", "a", "b", dtype="float32"), halves).notes == ()


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_tensors_that_come_out_as_the_bases_are_noted(method: str) -> None:
    weight = [{"filter": "mlp", "value": 0.0}, {"value": 1.0}]
    made = plan(recipe(method, "a", "b", base="base", parameters={"weight": weight}))

    assert made.notes == (
        f"every weight is 0, so the base's value comes out: 2 tensors, {UP} first",
    )


def test_remarks_and_knobs_without_effect_are_among_the_notes() -> None:
    merge = recipe("task_arithmetic", "a", base="b", parameters={"density": 0.5})
    options = PlanOptions(memory_bytes=GIB, threads=1)
    made = build(merge, [catalog("b"), catalog("a")], options, remarks=["config.json: differs"])

    assert made.notes == (*merge.no_effect, "config.json: differs")
    assert merge.no_effect


# --- figures -------------------------------------------------------------------------------------


def test_bytes_read_count_every_sweep_over_the_files() -> None:
    size = sum(dtype.num_bytes(shape) for dtype, shape in MODEL.values())
    half = {"density": 0.5}
    once = plan(recipe("linear", "a", "b"))
    held = plan(recipe("ties", "a", base="b", parameters=half))
    surveyed = plan(recipe("ties", "a", base="b", parameters={**half, "trim": "model"}))

    assert once.bytes_read == held.bytes_read == 2 * size
    assert surveyed.bytes_read == 2 * size * (1 + SURVEY_SWEEPS)
    assert surveyed.surveyed
    assert not held.surveyed


def test_bytes_read_count_the_heads_that_are_compared() -> None:
    size = sum(dtype.num_bytes(shape) for dtype, shape in TIED.values())
    says_tied = {"tie_word_embeddings": True}
    made = plan(recipe("passthrough", "a"), [catalog("a", config=says_tied)])

    assert made.bytes_read == size + 2 * DType.BF16.num_bytes(MODEL[HEAD][1])


def test_tensors_lie_in_the_order_of_their_bytes() -> None:
    made = plan(recipe("linear", "a", "b"), shard_bytes=2000)

    slots = [(shard.name, slot) for shard in made.shards for slot in shard.slots]
    assert [node.slot for node in made.nodes] == [slot for _, slot in slots]
    assert made.bytes_written == sum(shard.nbytes for shard in made.shards)
    assert made.parameters == sum(node.inputs[0].num_elements for node in made.nodes)
    assert len(made.shards) > 1


# --- digest --------------------------------------------------------------------------------------


def base_case(*, seed: int = 7, weight: float = 0.3, **top: object) -> Recipe:
    knobs = {"weight": weight, "density": 0.5}
    return recipe("ties", "a", "b", base="base", parameters=knobs, seed=seed, **top)


def repinned(label: str, name: str) -> list[Catalog]:
    return [catalog(each, tag="2-2" if each == name else "1-1") for each in label.split()]


REFERENCE = plan(base_case())

CHANGES: dict[str, Callable[[], Plan]] = {
    "seed": lambda: plan(base_case(seed=8)),
    "weight": lambda: plan(base_case(weight=0.4)),
    "dtype": lambda: plan(base_case(dtype="float32")),
    "drop": lambda: plan(base_case(drop=NORM)),
    "keep": lambda: plan(base_case(keep=NORM)),
    "nan": lambda: plan(base_case(nan="pass")),
    "method": lambda: plan(
        recipe("dare_ties", "a", "b", base="base", seed=7, parameters={"weight": 0.3})
    ),
    "order of sources": lambda: plan(
        recipe("ties", "b", "a", base="base", seed=7, parameters={"weight": 0.3, "density": 0.5})
    ),
    "a label, since draws are keyed by it": lambda: plan(
        base_case(models=["a", {"model": "b", "label": "c"}])
    ),
    "a source's file": lambda: plan(base_case(), repinned("base a b", "b")),
    "shard size": lambda: plan(base_case(), shard_bytes=2000),
    "a tensor's shape": lambda: plan(
        base_case(),
        [catalog(label, {**MODEL, NORM: (DType.BF16, (8,))}) for label in ("base", "a", "b")],
    ),
    "a tensor less": lambda: plan(
        base_case(), [catalog(label, without(MODEL, NORM)) for label in ("base", "a", "b")]
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_digest_changes_with_what_changes_bytes(what: str) -> None:
    assert CHANGES[what]().digest != REFERENCE.digest


def test_the_digest_changes_with_the_donor_whose_config_is_written() -> None:
    # The same tensors in the same order, so nothing else tells the two apart.
    given = {"models": ["a", "b"], "parameters": {"weight": 0.5}}
    catalogs = [catalog("a"), catalog("b")]
    donors = [plan(recipe("linear", base=base, **given), catalogs) for base in (None, "b")]

    assert [made.donor.label for made in donors] == ["a", "b"]
    assert donors[0].nodes == donors[1].nodes
    assert donors[0].digest != donors[1].digest


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 7},
        {"memory_bytes": 64 * GIB},
        {"memory_bytes": 420 * 2**20, "threads": 1},
        {"device_memory_bytes": GIB},
        {"tile_elements": 256},
        {"whole_shards": True},
        {"shard_bytes": 256_000_000},  # what auto comes to
    ],
)
def test_the_digest_knows_nothing_of_machines(options: dict[str, Any]) -> None:
    assert plan(base_case(), **options).digest == REFERENCE.digest


def test_the_digest_knows_nothing_of_places_and_comments() -> None:
    moved = [catalog(label, location=f"s3://bucket/{label}") for label in ("base", "a", "b")]
    retold = replace(base_case(), path="elsewhere.yaml", text="# the same, with a comment")

    assert plan(retold, moved).digest == REFERENCE.digest


def test_a_digest_is_the_same_in_every_version_until_the_contract_changes() -> None:
    assert REFERENCE.digest == "ce4488f9c38efff5"


@settings(deadline=None)
@given(data=st.data())
def test_a_plan_is_a_function_of_recipe_and_sources(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["linear", "ties", "dare_linear", "task_arithmetic"]))
    names = data.draw(st.permutations(["a", "b", "c"]))
    base = None if method == "linear" else "base"
    seed = data.draw(st.integers(0, 2**64 - 1))

    first, second = (plan(recipe(method, *names, base=base, seed=seed)) for _ in range(2))
    assert first == second


def test_a_plan_survives_pickling() -> None:
    travelled = pickle.loads(pickle.dumps(REFERENCE))

    assert travelled == REFERENCE
    assert travelled.digest == REFERENCE.digest


# --- size ----------------------------------------------------------------------------------------


def test_a_mixture_of_experts_is_planned_in_seconds() -> None:
    experts: Tensors = {
        f"model.layers.{i // 400}.mlp.experts.{i % 400}.up_proj.weight": (DType.BF16, (2048, 768))
        for i in range(30_000)
    }
    catalogs = [catalog(label, experts) for label in ("base", "a", "b", "c")]
    knobs = {"weight": [0.2, 0.8], "density": 0.5}
    merge = recipe("ties", "a", "b", "c", base="base", parameters=knobs)

    began = time.process_time()
    made = plan(merge, catalogs, memory_bytes=16 * GIB)
    cpu_s = time.process_time() - began

    assert len(made.nodes) == 30_000
    assert isinstance(made.nodes[0].step, DeltaStep)
    assert cpu_s < 10


def test_catalogs_are_not_touched() -> None:
    catalogs = [catalog("base"), catalog("a"), catalog("b")]
    plan(base_case(), catalogs)

    assert catalogs == [catalog("base"), catalog("a"), catalog("b")]
    assert catalogs[0].pins == {"model.safetensors": Pin(catalogs[0].tensors[HEAD].stop, "1-1")}
