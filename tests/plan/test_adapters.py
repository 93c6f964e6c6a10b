"""How adapters find their tensors in a model, what a plan shows of them, and what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.lora import parse_lora
from raymerge.errors import PlanError, RaymergeError, SourceError
from raymerge.plan.adapted import Adapted, Replaced
from raymerge.plan.build import Plan
from raymerge.plan.graph import Input, Read
from raymerge.recipe import Recipe
from tests.adapters import CONFIG, PREFIX
from tests.plans import DOWN, EMBEDDING, HEAD, MODEL, NORM, TIED, UP, Tensors, catalog, plan, recipe

Shapes = Mapping[str, tuple[int, ...]]
F32 = DType.F32
UP_MODULE, DOWN_MODULE = UP.removesuffix(".weight"), DOWN.removesuffix(".weight")
ON_UP: Shapes = {f"{UP_MODULE}.lora_A.weight": (4, 16), f"{UP_MODULE}.lora_B.weight": (64, 4)}


def adapter(label: str, shapes: Shapes = ON_UP, *, prefix: str = PREFIX, **config: Any) -> Catalog:
    stored = catalog(label, {prefix + name: (F32, shape) for name, shape in shapes.items()})
    lora = parse_lora({**CONFIG, **config}, source=label)
    return replace(stored, lora=lora, config={})


def over(
    shapes: Shapes, *, model: Tensors = MODEL, model_config: Mapping[str, Any] | None = None,
    **config: Any,
) -> Plan:  # fmt: skip
    """The plan of copying one model with an adapter."""
    merge = recipe("passthrough", "org/base+org/lora")
    catalogs = [
        catalog("base+lora", model, config=model_config),
        adapter("base+lora adapter", shapes, **config),
    ]
    return plan(merge, catalogs)


def inputs(made: Plan, name: str) -> tuple[Input, ...]:
    return next(node.inputs for node in made.nodes if node.slot.name == name)


def one_input(made: Plan, name: str) -> Input:
    (one,) = inputs(made, name)
    return one


# --- which tensor ---------------------------------------------------------------------------------


def test_only_what_the_adapter_names_is_derived() -> None:
    made = over({**ON_UP, NORM: (16,)})
    kinds = {node.slot.name: type(node.inputs[0]) for node in made.nodes}
    assert kinds == {**dict.fromkeys(MODEL, Read), UP: Adapted, NORM: Replaced}
    one = one_input(made, UP)
    assert isinstance(one, Adapted)
    assert (one.rank, one.scaling, one.transposed, one.dtype) == (4, 2.0, False, DType.BF16)
    assert [read.source for read in one.reads] == [0, 1, 1]
    assert one.source == 0
    assert one_input(made, NORM).dtype is DType.BF16


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "lm_head.modules_to_save.weight",
        "lm_head.modules_to_save.default.weight",
        "lm_head.base_layer.weight",
    ],
)
def test_a_module_saved_whole_has_one_of_several_names(name: str) -> None:
    assert isinstance(one_input(over({**ON_UP, name: (32, 16)}), HEAD), Replaced)


def test_factors_may_keep_the_adapters_own_name() -> None:
    named = {name.replace(".weight", ".default.weight"): shape for name, shape in ON_UP.items()}
    assert isinstance(one_input(over(named), UP), Adapted)


def test_a_checkpoint_of_the_bare_model_lacks_the_first_component() -> None:
    bare = {name.removeprefix("model."): kind for name, kind in MODEL.items()}
    assert isinstance(one_input(over(ON_UP, model=bare), UP.removeprefix("model.")), Adapted)


SEEING = "model.language_model.layers.{}.self_attn.q_proj".format
MATRIX = (F32, (16, 16))


def on_layers(module: Callable[[int], str], layers: int = 2) -> Shapes:
    return {f"{module(n)}.lora_{f}.weight": s for n in range(layers)
            for f, s in (("A", (4, 16)), ("B", (16, 4)))}  # fmt: skip


@pytest.mark.parametrize(
    "stored",
    [
        "model.layers.{}.self_attn.q_proj",
        "language_model.model.layers.{}.self_attn.q_proj",
        "language_model.layers.{}.self_attn.q_proj",
        "layers.{}.self_attn.q_proj",
    ],
)
def test_a_language_model_may_be_stored_under_another_prefix(stored: str) -> None:
    """As transformers does with models that see, whose other layers may have the same names."""
    tower = "vision_tower.encoder.layers.{}.self_attn.q_proj".format
    model = {f"{name(n)}.weight": MATRIX for n in range(2) for name in (stored.format, tower)}
    model |= {"language_model.lm_head.weight": MATRIX}
    shapes = {**on_layers(SEEING), **on_layers(lambda n: f"model.{tower(n)}", 1)}
    made = over({**shapes, HEAD: (16, 16)}, model=model)
    kinds = {node.slot.name: type(node.inputs[0]) for node in made.nodes}
    assert kinds == {
        **{f"{stored.format(n)}.weight": Adapted for n in range(2)},
        f"{tower(0)}.weight": Adapted,
        f"{tower(1)}.weight": Read,
        "language_model.lm_head.weight": Replaced,
    }


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (["model.layers.{}.self_attn.q_proj"], "model.decoder.layers.{}.self_attn.q_proj"),
        (["vision_tower.encoder.layers.{}.self_attn.q_proj"], SEEING("{}")),
        (["layers.{}.q_proj", "language_model.layers.{}.q_proj"], "model.model.layers.{}.q_proj"),
        (["model.h.{}.self_attn.q_proj"], SEEING("{}")),
    ],
    ids=["another model's", "another part's", "one of two", "another stack's"],
)  # fmt: skip
def test_a_prefix_that_says_something_else_is_another_models(stored: list[str], named: str) -> None:
    model = {f"{name.format(n)}.weight": MATRIX for n in range(2) for name in stored}
    with pytest.raises(PlanError, match="2 tensors of the adapter match none of the model"):
        over(on_layers(named.format), model=model)


def test_a_layer_that_the_model_lacks_is_not_passed_over() -> None:
    model = {f"model.layers.{n}.self_attn.q_proj.weight": MATRIX for n in range(2)}
    with pytest.raises(PlanError, match="3 tensors of the adapter match none of the model"):
        over(on_layers(SEEING, 3), model=model)


@pytest.mark.parametrize(
    ("shape", "bias", "flag", "transposed"),
    [
        ((16, 64), None, False, True),
        ((64, 16), None, True, False),
        ((16, 16), None, False, False),
        ((16, 16), None, True, True),
        ((16, 16), (16, 48), False, True),  # another matrix is seen to be (inputs, outputs)
        ((16, 16), (48, 16), True, False),
    ],
)
def test_shapes_tell_which_way_a_matrix_lies_before_the_flag_does(
    shape: tuple[int, int],
    bias: tuple[int, int] | None,
    flag: bool,  # noqa: FBT001
    transposed: bool,  # noqa: FBT001
) -> None:
    outputs, inputs = reversed(shape) if transposed else shape
    factors = {"h.lora_A.weight": (4, inputs), "h.lora_B.weight": (outputs, 4)}
    model: dict[str, tuple[DType, tuple[int, ...]]] = {"h.weight": (F32, shape)}
    if bias:
        model |= {"k.weight": (F32, bias), "k.bias": (F32, (48,))}
    one = one_input(over(factors, model=model, fan_in_fan_out=flag), "h.weight")
    assert isinstance(one, Adapted)
    assert one.transposed is transposed


def test_a_head_saved_with_a_tied_model_has_to_equal_the_embedding() -> None:
    whole = {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16)}
    made = over(whole, model=TIED, model_config={"tie_word_embeddings": True})
    assert made.tie is not None
    assert made.tie.tied
    assert made.tie.must_equal == ("base+lora",)
    assert [node.slot.name for node in made.nodes] == list(TIED)


@pytest.mark.parametrize("tied", [True, False, None])
def test_a_head_saved_alone_becomes_the_head(tied: bool | None) -> None:  # noqa: FBT001
    config = {} if tied is None else {"tie_word_embeddings": tied}
    made = over({"lm_head.weight": (32, 16)}, model=TIED, model_config=config)
    assert made.tie is not None
    assert not made.tie.tied
    assert made.tie.must_equal == ()
    assert isinstance(one_input(made, HEAD), Replaced)
    assert isinstance(one_input(made, EMBEDDING), Read)
    assert any("no longer tied" in note for note in made.notes) == bool(tied)


def test_a_model_without_the_adapter_gives_its_embedding_for_the_head() -> None:
    merge = recipe(
        "task_arithmetic", "org/base+org/lora", base="org/base", parameters={"weight": 1}
    )
    config = {"tie_word_embeddings": True}
    catalogs = [
        catalog("base", TIED, config=config),
        catalog("base+lora", TIED, config=config),
        adapter("base+lora adapter", {"lm_head.weight": (32, 16)}),
    ]
    assert [one.name for one in inputs(plan(merge, catalogs), HEAD)] == [EMBEDDING, HEAD]


# --- sources --------------------------------------------------------------------------------------


def two_adapters(**options: Any) -> Plan:
    merge = recipe("ties", "org/base+org/math", "org/code", base="org/base")
    catalogs = [
        catalog("base"),
        catalog("base+math"),
        adapter("code", {NORM: (16,), **ON_UP}, lora_alpha=2),
        adapter("base+math adapter", **options),
    ]
    return plan(merge, catalogs)


def test_an_adapter_alone_is_added_to_the_base() -> None:
    base, math, code = inputs(two_adapters(), UP)
    assert isinstance(base, Read)
    assert isinstance(math, Adapted)
    assert isinstance(code, Adapted)
    assert code.base == base
    assert [read.source for read in code.reads] == [0, 2, 2]
    assert (math.source, code.source, code.scaling) == (1, 2, 0.5)
    # What it leaves as it is, is the base's.
    assert [one.source for one in inputs(two_adapters(), DOWN)] == [0, 1, 0]


def test_an_adapter_alone_is_added_to_a_base_with_an_adapter_of_its_own() -> None:
    merge = recipe("ties", "org/code", base="org/base+org/math")
    catalogs = [catalog("base+math"), adapter("code"), adapter("base+math adapter", lora_alpha=4)]
    base, code = inputs(plan(merge, catalogs), UP)
    assert isinstance(code, Adapted)
    assert code.base == base
    assert code.how == "(base + 1 B@A (rank 4)) + 2 B@A (rank 4)"
    assert [read.source for read in code.reads] == [0, 2, 2, 1, 1]


def test_the_plan_has_the_adapters_as_sources() -> None:
    made = two_adapters(rank_pattern={"down_proj": 2})
    assert [source.label for source in made.sources] == [
        "base", "base+math", "code", "base+math adapter",
    ]  # fmt: skip
    applied = [source.adapter for source in made.sources]
    assert applied[:2] == [None, None]
    assert applied[2] is not None
    assert applied[3] is not None
    assert (applied[2].source, applied[2].adapted, applied[2].replaced) == ("code", 1, 1)
    assert (applied[3].source, applied[3].ranks, applied[3].scalings) == ("base+math", (4,), (2.0,))
    assert made.sources[3].side_files == ()


def test_what_it_was_trained_on_is_compared_by_name() -> None:
    assert two_adapters(base_model_name_or_path="elsewhere/base").notes == ()
    assert two_adapters(base_model_name_or_path="org/other").notes == (
        "base+math adapter: trained on org/other by its config, added to org/base here",
    )


def test_a_unit_of_many_adapted_tensors_travels_in_100_kb() -> None:
    modules = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(40) for kind in "qkvo"]
    model = {f"{module}.weight": (DType.BF16, (16, 16)) for module in modules}
    shapes = {
        f"{module}.lora_{factor}.weight": (4, 16) if factor == "A" else (16, 4)
        for module in modules
        for factor in "AB"
    }
    names = [f"adapter{i}" for i in range(5)]
    merge = recipe("ties", *(f"org/base+org/{name}" for name in names), base="org/base")
    made = plan(
        merge,
        [
            catalog("base", model),
            *(catalog(f"base+{name}", model) for name in names),
            *(adapter(f"base+{name} adapter", shapes) for name in names),
        ],
    )
    assert len(made.units) == 3
    assert max(len(pickle.dumps(unit)) for unit in made.units) <= 100_000


REFERENCE = two_adapters().digest


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": 9},
        {"use_rslora": True},
        {"alpha_pattern": {"up_proj": 1}},
    ],
)
def test_the_digest_changes_with_the_config(config: dict[str, Any]) -> None:
    assert two_adapters(**config).digest != REFERENCE


# --- what does not fit ----------------------------------------------------------------------------

A, B = (f"{UP_MODULE}.lora_{factor}.weight" for factor in "AB")
AT = f"base+lora adapter: the adapter does not fit at {UP_MODULE}: "
MISFITS: dict[str, tuple[type[RaymergeError], Shapes, dict[str, Any], str]] = {
    "names": (
        PlanError,
        {f"m.{i}.lora_{f}.weight": (4, 4) for i in range(5) for f in "AB"},
        {},
        ("base+lora adapter: 5 tensors of the adapter match none of the model: m.0.weight, "
        "m.1.weight, m.2.weight and 2 more (after 'base_model.model.'). The model's are named like "
        f"'{EMBEDDING}'"),
    ),
    "a head of a tied model": (
        PlanError,
        {"lm_head.lora_A.weight": (4, 16), "lm_head.lora_B.weight": (32, 4)},
        {"model": TIED},
        "base+lora adapter: 1 tensors of the adapter match none of the model: lm_head.weight (",
    ),
    "twice": (
        SourceError, {**ON_UP, f"{UP_MODULE}.lora_A.default.weight": (4, 16)}, {},
        (f"base+lora adapter: {PREFIX}{A} and {PREFIX}{UP_MODULE}.lora_A.default.weight of the "
        "adapter are the same tensor"),
    ),
    "whole, twice": (
        SourceError, {HEAD: (32, 16), "lm_head.modules_to_save.weight": (32, 16)}, {},
        f"base+lora adapter: {PREFIX}{HEAD} and {PREFIX}lm_head.modules_to_save.weight of the",
    ),
    "twice by its names": (
        PlanError, {HEAD: (32, 16), f"x.{HEAD}": (32, 16)}, {},
        f"base+lora adapter: x.{HEAD} and {HEAD} of the adapter match one tensor",
    ),
    "nothing": (SourceError, {}, {}, "base+lora adapter: the adapter holds no tensor"),
    "rank": (
        SourceError, ON_UP, {"r": 8},
        AT + "A is [4, 16] and B [64, 4], and its config says rank 8",
    ),
    "ranks of A and B": (SourceError, {A: (4, 16), B: (64, 5)}, {}, AT + "A is [4, 16] and B"),
    "rank pattern": (SourceError, ON_UP, {"rank_pattern": {"up_proj": 3}}, AT + "A is [4, 16]"),
    "shape": (
        SourceError, {A: (4, 17), B: (64, 4)}, {},
        AT + "B @ A is [64, 17], the model's [64, 16]",
    ),
    "no B": (SourceError, {A: (4, 16)}, {}, AT + "it has A"),
    "two kinds": (
        SourceError, {**ON_UP, f"{UP_MODULE}.lora_embedding_A": (4, 16)}, {},
        AT + "it has A and B and embedding_A",
    ),
    "a convolution": (
        PlanError, {A: (4, 16, 3, 3), B: (64, 4, 1, 1)}, {},
        (f"base+lora adapter: {UP_MODULE}: A is [4, 16, 3, 3] and B [64, 4, 1, 1], factors of a "
        "convolution"),
    ),
    "magnitudes missing": (
        SourceError, ON_UP, {"use_dora": True}, AT + "it has None magnitudes, expected 64",
    ),
    "magnitudes unasked": (
        SourceError, {**ON_UP, f"{UP_MODULE}.lora_magnitude_vector": (64,)}, {},
        AT + "it has 64 magnitudes, expected None",
    ),
    "too few magnitudes": (
        SourceError, {**ON_UP, f"{UP_MODULE}.lora_magnitude_vector": (16,)}, {"use_dora": True},
        AT + "it has 16 magnitudes, expected 64",
    ),
    "new tokens": (
        PlanError, {EMBEDDING: (34, 16)}, {},
        (f"base+lora adapter: {EMBEDDING} has shape [34, 16] in the adapter and [32, 16] in the "
        "model. Rows that training added"),
    ),
    "a bias of the adapter's": (
        PlanError, {**ON_UP, f"{UP_MODULE}.lora_B.bias": (64,)}, {},
        ("base+lora adapter: 1 tensors of the adapter match none of the model: "
        f"{UP_MODULE}.lora_B.bias"),
    ),
    "codes": (
        SourceError, ON_UP, {"model": {**MODEL, UP: (DType.I64, (64, 16))}},
        AT + "the model's is int64",
    ),
    "float64": (
        SourceError, ON_UP, {"model": {**MODEL, UP: (DType.F64, (64, 16))}},
        AT + "the model's is float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused(case: str) -> None:
    kind, shapes, options, message = MISFITS[case]
    with pytest.raises(kind) as caught:
        over(shapes, **options)
    assert str(caught.value).startswith(message)
    assert caught.value.source == "base+lora adapter"


def test_names_without_pefts_prefix_are_taken_for_the_models() -> None:
    merge = recipe("passthrough", "org/base+org/lora")
    made = plan(merge, [catalog("base+lora"), adapter("base+lora adapter", prefix="")])
    assert isinstance(one_input(made, UP), Adapted)


ALONE = "code is a LoRA adapter and the recipe has no base_model to add it to. Add base_model: "


@pytest.mark.parametrize(
    ("merge", "catalogs", "message"),
    [
        (
            recipe("linear", "org/code", "org/b"),
            [adapter("code"), catalog("b")],
            ALONE + "<model>, or write <model>+org/code",
        ),
        (
            recipe("ties", "org/b", base="org/code"),
            [adapter("code"), catalog("b")],
            (
                "base_model: code is a LoRA adapter, not a model; write the model that it was "
                "trained on, or <model>+org/code"
            ),
        ),
        (
            recipe("passthrough", "org/code+org/math"),
            [adapter("code+math"), adapter("code+math adapter")],
            "code+math: org/code is a LoRA adapter itself; + adds an adapter to a model",
        ),
    ],
)
def test_an_adapter_alone_needs_a_model(
    merge: Recipe, catalogs: list[Catalog], message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        plan(merge, catalogs)
    assert str(caught.value) == message


def test_what_is_worked_out_stays_in_memory_between_passes() -> None:
    large = {UP: (DType.BF16, (2048, 4096)), DOWN: (DType.BF16, (2048, 4096))}
    shapes = {f"{UP_MODULE}.lora_A.weight": (4, 4096), f"{UP_MODULE}.lora_B.weight": (2048, 4)}
    merge = recipe("ties", "org/code", base="org/base", parameters={"density": 0.5})
    made = plan(merge, [catalog("base", large), adapter("code", shapes)], hold=False)
    held = {node.slot.name: made.memory.budget.holds(node) for node in made.nodes}
    assert held == {UP: True, DOWN: False}
