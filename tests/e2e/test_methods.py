"""Every method, through the command line, against its oracle: bit by bit, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymerge.checkpoint.dtypes import DType
from raymerge.methods import methods
from tests.band_oracles import oracle_breadcrumbs, oracle_della
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import METHOD_KNOBS, WITHOUT_BASE, Place, raw
from tests.oracles import (
    Floats,
    Mask,
    from_dtype,
    kept_largest,
    oracle_dare,
    oracle_linear,
    oracle_slerp,
    oracle_task_arithmetic,
    oracle_ties,
    span_pass,
    to_dtype,
)
from tests.oracles_free import FREE_ORACLES
from tests.span_oracles import (
    Grouping,
    oracle_karcher,
    oracle_model_stock,
    oracle_multislerp,
    oracle_nuslerp,
)

DTYPES = {
    torch.bfloat16: DType.BF16,
    torch.float16: DType.F16,
    torch.float32: DType.F32,
    torch.float64: DType.F64,
}
LABELS = ("a", "b")
EACH_METHOD = pytest.mark.parametrize("method", sorted(METHOD_KNOBS))


def widened(tensor: Tensor) -> Floats:
    return from_dtype(raw(tensor), DTYPES[tensor.dtype])


def expected(  # noqa: PLR0911 - one for each oracle
    method: str, name: str, tensors: Sequence[Tensor], knobs: Mapping[str, Any], *, seed: int = 0
) -> Floats:
    """What the oracle makes of one tensor: base, a, b, in float32 before the cast.

    A knob of one value per source may be given as the one for all.
    """
    base, *sources = map(widened, tensors)
    if method in FREE_ORACLES:
        return FREE_ORACLES[method](base, sources, shape=tuple(tensors[0].shape), **knobs)
    filled = {"lambda": 1.0, "density": 1.0, "rescale": False, **knobs}
    weight, density = (
        _each(value, sources) for value in (filled.get("weight", 1.0), filled["density"])
    )
    match method:
        case "linear":
            normalize = filled.get("normalize", True)
            return oracle_linear(sources, weight=weight, normalize=normalize)
        case "passthrough":
            return span_pass(sources[:1], [filled["scale"]])
        case "task_arithmetic":
            return oracle_task_arithmetic(
                base,
                sources,
                weight=weight,
                lambda_=filled["lambda"],
                normalize=filled.get("normalize", False),
            )
        case "ties":
            return oracle_ties(
                base,
                sources,
                weight=weight,
                density=density,
                normalize=filled.get("normalize", True),
                lambda_=filled["lambda"],
                rescale="l1" if filled["rescale"] else None,
            )
        case "dare_linear" | "dare_ties":
            return oracle_dare(
                base,
                sources,
                weight=weight,
                density=density,
                elect=method == "dare_ties",
                rescale=filled["rescale"] if "rescale" in knobs else True,
                normalize=filled.get("normalize", False),
                lambda_=filled["lambda"],
                seed=seed,
                labels=LABELS,
                tensor=name,
            )
        case "breadcrumbs" | "breadcrumbs_ties":
            return oracle_breadcrumbs(
                base,
                sources,
                weight=weight,
                density=density,
                gamma=_each(filled.get("gamma", 0.01), sources),
                elect=method == "breadcrumbs_ties",
                rescale=bool(filled["rescale"]),
                normalize=filled.get("normalize", False),
                lambda_=filled["lambda"],
            )
        case "della" | "della_linear":
            return oracle_della(
                base,
                sources,
                shape=tensors[0].shape,
                weight=weight,
                density=density,
                epsilon=_each(filled.get("epsilon", 0.15), sources),
                elect=method == "della",
                rescale=filled["rescale"] if "rescale" in knobs else True,
                normalize=filled.get("normalize", method == "della"),
                lambda_=filled["lambda"],
                seed=seed,
                labels=LABELS,
                tensor=name,
            )
    return expected_by_angles(method, tensors, {**knobs, "weight": weight})


def expected_by_angles(method: str, tensors: Sequence[Tensor], knobs: Mapping[str, Any]) -> Floats:
    """The same for the span methods that take angles, maybe of rows or columns."""
    base, *sources = map(widened, tensors)
    shape = tensors[0].shape
    match method:
        case "slerp":
            return oracle_slerp(base, sources[0], t=knobs["t"])
        case "karcher":
            return oracle_karcher(sources, max_iter=knobs.get("max_iter", 10))
        case "multislerp":
            return oracle_multislerp(sources, base, weight=knobs["weight"])
        case "nuslerp":
            across: Grouping = "column" if knobs.get("nuslerp_row_wise") else "row"
            grouping: Grouping = "tensor" if knobs.get("nuslerp_flatten", True) else across
            weight = knobs["weight"]
            return oracle_nuslerp(sources, base, weight=weight, shape=shape, grouping=grouping)
        case "model_stock":
            grouping = "row" if knobs.get("filter_wise") else "tensor"
            return oracle_model_stock(base, sources, shape=shape, grouping=grouping)
    raise AssertionError(f"no oracle for {method}")


def _each(value: Any, sources: Sequence[Floats]) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value] * len(sources)


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    kind = tensors[0].dtype
    for tensor in tensors[1:]:
        kind = torch.promote_types(kind, tensor.dtype)
    return kind


def used(method: str, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of base, a and b those that a method's output is made of."""
    match method:
        case "linear" | "karcher":
            return tensors[1:]
        case "passthrough":
            return tensors[1:2]
        case "arcee_fusion" | "nearswap" | "slerp":
            return tensors[:2]
    return tensors


def assert_merged(
    found: Mapping[str, Tensor],
    method: str,
    models: Sequence[Mapping[str, Tensor]],
    knobs: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    **options: Any,
) -> None:
    assert found.keys() == models[0].keys()
    for name, tensor in found.items():
        tensors = [model[name] for model in models]
        wanted = dtype or promoted(used(method, tensors))
        assert (tensor.dtype, tensor.shape) == (wanted, tensors[0].shape), name
        values = expected(method, name, tensors, knobs, **options)
        assert raw(tensor) == to_dtype(values, DTYPES[wanted]), f"{method}: {name}"


def mixed(seed: int, kinds: Sequence[torch.dtype]) -> dict[str, Tensor]:
    """A model of odd shapes whose tensors are of `kinds` in turn."""
    shapes = [(300, 7), (1,), (257,), (), (0, 8), (9, 3, 5), (64, 64), (1031,)]
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(shape, generator=generator) for shape in shapes]
    noise = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{i}.weight": (
            tensor + (0.05 * torch.randn(tensor.shape, generator=noise) if seed else 0)
        ).to(kinds[i % len(kinds)])
        for i, tensor in enumerate(base)
    }


def three(place: Place, *kinds: Sequence[torch.dtype]) -> list[dict[str, Tensor]]:
    """Write `base`, `a` and `b`, whose tensors are of each one's `kinds` in turn."""
    models = [mixed(seed, kinds[seed % len(kinds)]) for seed in range(3)]
    for name, model in zip(("base", "a", "b"), models, strict=True):
        place.model(name, model)
    return models


def test_every_method_is_held_to_this() -> None:
    assert METHOD_KNOBS.keys() == methods().keys()


@EACH_METHOD
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_method_equals_its_oracle(place: Place, method: str, kind: torch.dtype) -> None:
    models = three(place, [kind])
    found = place.merged(place.any_recipe(method), "out", "--shard-size", "3kB")

    assert_merged(found, method, models, METHOD_KNOBS[method])


@EACH_METHOD
def test_sources_of_different_dtypes_are_widened_and_promoted(place: Place, method: str) -> None:
    models = three(
        place,
        [torch.bfloat16, torch.float32],
        [torch.float16, torch.bfloat16, torch.float32],
        [torch.bfloat16],
    )
    found = place.merged(place.any_recipe(method))

    assert_merged(found, method, models, METHOD_KNOBS[method])


@EACH_METHOD
@pytest.mark.parametrize(
    ("top", "kind"),
    [
        ({"dtype": "float32"}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float32", "out_dtype": "float16"}, torch.float16),
    ],
    ids=["dtype", "narrowed", "out_dtype"],
)
def test_dtype_names_the_output_and_never_the_arithmetic(
    place: Place, method: str, top: dict[str, str], kind: torch.dtype
) -> None:
    models = three(place, [torch.bfloat16], [torch.float32])
    found = place.merged(place.any_recipe(method, **top))

    assert_merged(found, method, models, METHOD_KNOBS[method], kind)


@EACH_METHOD
def test_a_float64_source_is_rounded_to_the_type_named(place: Place, method: str) -> None:
    models = three(place, [torch.float64], [torch.bfloat16], [torch.float64])
    found = place.merged(place.any_recipe(method, dtype="bfloat16"))

    assert_merged(found, method, models, METHOD_KNOBS[method], torch.bfloat16)


def test_a_float64_source_without_a_dtype_is_refused(place: Place) -> None:
    three(place, [torch.float64])
    done = place.merge(place.any_recipe("linear"), "out", "--json")

    assert (done.rc, done.error["type"]) == (2, "PlanError")
    assert "dtype: float32" in done.error["message"]


# --- knobs ---------------------------------------------------------------------------------------


OTHER_KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"weight": [0.3, -1.2], "normalize": False}),
    ("linear", {"weight": [3.0, 1.0]}),
    ("karcher", {"max_iter": 0}),
    ("karcher", {}),
    ("model_stock", {}),
    ("multislerp", {"weight": [0.9, -0.3]}),
    ("nuslerp", {"weight": [0.3, 0.9]}),
    ("nuslerp", {"weight": [0.3, -0.7], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("nuslerp", {"weight": [0.5, -0.5], "nuslerp_row_wise": True}),
    ("passthrough", {"scale": -2.0}),
    ("slerp", {"t": 0.0}),
    ("slerp", {"t": 1.0}),
    ("slerp", {"t": 1.5}),
    ("task_arithmetic", {"weight": [0.5, -0.25], "normalize": True, "lambda": 1.5}),
    ("task_arithmetic", {"weight": [0.0, 0.0], "normalize": True}),
    ("ties", {"weight": [1.0, 0.3], "density": [0.2, 0.7]}),
    ("ties", {"weight": 1.0, "density": [0.0, 1.0], "normalize": False}),
    ("ties", {"weight": [0.5, -0.2], "density": 0.5, "lambda": 0.7}),
    ("ties", {"weight": 1.0}),
    ("dare_linear", {"weight": [0.7, -0.2], "density": [0.1, 0.9], "normalize": True}),
    ("dare_linear", {"weight": 1.0, "density": 0.0}),
    ("dare_linear", {"weight": 1.0, "density": 0.5, "rescale": False, "lambda": 0.5}),
    ("dare_ties", {"weight": [1.0, 0.5], "density": [0.3, 1.0], "normalize": True}),
    ("dare_ties", {"weight": 1.0, "density": 0.5}),
    ("breadcrumbs", {"weight": [0.3, -1.0], "density": [0.5, 0.95], "gamma": [0.2, 0.1]}),
    ("breadcrumbs_ties", {"weight": 1.0, "density": 0.9, "normalize": True, "lambda": 0.5}),
    ("della", {"weight": [0.3, 1.0], "density": [0.3, 1.0], "epsilon": [0.2, 0.3]}),
    ("della_linear", {"weight": 1.0, "density": 0.5, "rescale": False, "normalize": True}),
]


@pytest.mark.parametrize(("method", "knobs"), OTHER_KNOBS, ids=str)
def test_knobs_mean_what_the_oracle_says(place: Place, method: str, knobs: dict[str, Any]) -> None:
    models = three(place, [torch.bfloat16])
    sources = LABELS[:1] if method in {"slerp", "passthrough"} else LABELS
    own = {
        source: {name: value[i] for name, value in knobs.items() if isinstance(value, list)}
        for i, source in enumerate(sources)
    }
    shared = {name: value for name, value in knobs.items() if not isinstance(value, list)}
    base = None if method in WITHOUT_BASE else "base"
    recipe = place.recipe(method, own, base=base, parameters=shared)

    assert_merged(place.merged(recipe), method, models, knobs)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_the_seed_of_the_command_line_replaces_the_recipe_s(place: Place, method: str) -> None:
    models = three(place, [torch.bfloat16])
    recipe = place.any_recipe(method, seed=3)

    assert_merged(place.merged(recipe), method, models, METHOD_KNOBS[method], seed=3)
    found = place.merged(recipe, "again", "--seed", 7)
    assert_merged(found, method, models, METHOD_KNOBS[method], seed=7)


def test_gradients_stretch_over_layers_and_filters_choose_tensors(place: Place) -> None:
    base = place.llamas(layers=5)
    models = [base, fine_tune(base, 1), fine_tune(base, 2)]
    knobs = {
        "weight": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}],
        "density": [{"filter": "self_attn", "value": [0.2, 0.6, 1.0]}, 0.3],
    }
    own = {"density": 0.9}
    knobs["density"] = [{"filter": "self_attn", "value": [0.2, 0.6, 1.0]}, {"value": 0.3}]
    recipe = place.recipe("ties", {"a": {}, "b": own}, base="base", parameters=knobs)
    found = place.merged(recipe)

    for name, tensor in found.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        depth = layer / 4
        weight = depth if "mlp" in name else 0.5
        density = 0.2 + 0.8 * depth if "self_attn" in name else 0.3
        resolved = {"weight": weight, "density": [density, 0.9]}
        values = expected("ties", name, [model[name] for model in models], resolved)
        assert raw(tensor) == to_dtype(values, DType.BF16), (name, resolved)


def test_slerp_by_mergekit_s_usual_gradient(place: Place) -> None:
    base = place.llamas(1, layers=3)
    tuned = fine_tune(base, 1)
    t = [
        {"filter": "self_attn", "value": [0, 1]},
        {"filter": "mlp", "value": [1, 0]},
        {"value": 0.5},
    ]
    recipe = place.recipe("slerp", ["base", "a"], base="base", parameters={"t": t})

    for name, tensor in place.merged(recipe).items():
        depth = int(name.split(".")[2]) / 2 if ".layers." in name else 0.0
        wanted = depth if "self_attn" in name else 1 - depth if "mlp" in name else 0.5
        values = expected("slerp", name, [base[name], tuned[name]], {"t": wanted})
        assert raw(tensor) == to_dtype(values, DType.BF16), name


# --- trim: model ---------------------------------------------------------------------------------


def model_masks(
    deltas: Mapping[str, Floats], order: Sequence[str], density: float
) -> dict[str, Mask]:
    """The oracle's selection over all tensors as if they were one, in the order of their bytes."""
    joined = kept_largest(np.concatenate([deltas[name] for name in order]), density)
    masks, start = {}, 0
    for name in order:
        masks[name] = joined[start : start + deltas[name].size]
        start += deltas[name].size
    return masks


@pytest.mark.parametrize("shard_size", ["2kB", "20kB", "1MB"])
@pytest.mark.parametrize("density", [(0.2, 0.2), (0.001, 0.9), (0.0, 1.0), (1.0, 0.5)], ids=str)
def test_trim_model_selects_over_the_whole_model_in_the_order_of_its_bytes(
    place: Place, density: tuple[float, float], shard_size: str
) -> None:
    # bfloat16 deltas of a coarse grid: nearly all entries are tied with many others.
    base = tiny_llama_tensors(0)
    base["odd.weight"] = torch.zeros(0, 3, dtype=torch.bfloat16)
    models = [base, *(fine_tune(base, seed, 0.0002) for seed in (1, 2))]
    for name, model in zip(("base", "a", "b"), models, strict=True):
        place.model(name, model)
    own = {label: {"density": value} for label, value in zip(LABELS, density, strict=True)}
    top: dict[str, Any] = {"parameters": {"weight": 0.7}, "trim": "model"}
    recipe = place.recipe("ties", own, base="base", **top)
    plan = place.run("plan", recipe, "--json", "--shard-size", shard_size).json
    order = [tensor["name"] for tensor in plan["tensors"]]
    found = place.merged(recipe, "out", "--shard-size", shard_size)

    wide = [{name: widened(tensor) for name, tensor in model.items()} for model in models]
    masks = [
        model_masks({n: (model[n] - wide[0][n]) for n in order}, order, value)
        for model, value in zip(wide[1:], density, strict=True)
    ]
    for name in order:
        values = oracle_ties(
            wide[0][name],
            [model[name] for model in wide[1:]],
            weight=[0.7, 0.7],
            density=density,
            masks=[mask[name] for mask in masks],
        )
        assert raw(found[name]) == to_dtype(values, DType.BF16), name


def test_trim_model_leaves_kept_and_dropped_tensors_out_of_the_count(place: Place) -> None:
    base = place.llamas()
    recipe = place.recipe(
        "ties",
        base="base",
        parameters={"weight": 1.0, "density": 0.3},
        trim="model",
        keep=["*norm*"],
        drop=["lm_head.weight"],
    )
    planned = place.run("plan", recipe, "--json").json["tensors"]
    names = [tensor["name"] for tensor in planned if "norm" not in tensor["name"]]
    found = place.merged(recipe)
    tuned = (fine_tune(base, seed) for seed in (1, 2))
    models = [{n: widened(t) for n, t in m.items()} for m in (base, *tuned)]
    masks = [
        model_masks({n: model[n] - models[0][n] for n in names}, names, 0.3) for model in models[1:]
    ]

    for name in names:
        values = oracle_ties(
            models[0][name],
            [model[name] for model in models[1:]],
            weight=[1.0, 1.0],
            density=[0.3, 0.3],
            masks=[mask[name] for mask in masks],
        )
        assert raw(found[name]) == to_dtype(values, DType.BF16), name


# --- what is not merged --------------------------------------------------------------------------


def test_kept_tensors_are_the_donor_s_bytes_and_dropped_ones_are_not_there(place: Place) -> None:
    base = place.llamas()
    recipe = place.any_recipe(
        "ties", keep=["*embed*", "*.norm.weight"], drop=["lm_head.weight"], dtype="float32"
    )
    found = place.merged(recipe)

    assert found.keys() == base.keys() - {"lm_head.weight"}
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert raw(found[name]) == raw(base[name])
    assert found["model.layers.0.mlp.up_proj.weight"].dtype is torch.float32


def test_equal_buffers_are_copied_and_different_ones_refused(place: Place) -> None:
    weight = torch.ones(4, dtype=torch.bfloat16)
    for name in ("base", "a", "b"):
        place.model(
            name, {"w": weight, "steps": torch.arange(9), "mask": torch.tensor([True, False])}
        )
    found = place.merged(place.any_recipe("linear"))
    assert found["steps"].tolist() == list(range(9))
    assert found["mask"].tolist() == [True, False]

    place.model(
        "b", {"w": weight, "steps": torch.arange(1, 10), "mask": torch.tensor([True, False])}
    )
    done = place.merge(place.any_recipe("linear"), "other", "--json")
    assert (done.rc, done.error["tensor"], done.error["source"]) == (3, "steps", "b")
    assert "keep: [steps]" in done.error["message"]
    assert not (place / "other" / "model.safetensors.index.json").exists()
    found = place.merged(place.any_recipe("linear", keep="steps"), "kept")
    assert found["steps"].tolist() == list(range(9))


def test_identical_models_merge_to_the_model(place: Place) -> None:
    base = tiny_llama_tensors(0)
    for name in ("base", "a", "b"):
        place.model(name, base, config=llama_config(base))
    for method in sorted(METHOD_KNOBS):
        knobs = {} if method == "passthrough" else METHOD_KNOBS[method]
        found = place.merged(place.any_recipe(method, parameters=knobs), method)
        assert {n: raw(t) for n, t in found.items()} == {n: raw(t) for n, t in base.items()}, method


# --- heads ---------------------------------------------------------------------------------------

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def head_models(place: Place, *kinds: str) -> list[dict[str, Tensor]]:
    """Models `a`, `b`: each `untied`, `tied`, `tied, head stored` or `lying`."""
    base = tiny_llama_tensors(0)
    models = []
    for seed, (name, kind) in enumerate(zip(LABELS, kinds, strict=True), start=1):
        tensors = fine_tune(base, seed)
        if kind == "tied":
            del tensors[HEAD]
        elif kind == "tied, head stored":
            tensors[HEAD] = tensors[EMBEDDING].clone()
        tied = kind != "untied"
        place.model(name, tensors, config=llama_config(tensors, tied=tied))
        models.append(tensors)
    return models


def mean(*tensors: Tensor) -> bytes:
    return to_dtype(
        oracle_linear([widened(t) for t in tensors], weight=[1, 1], normalize=True), "BF16"
    )


@pytest.mark.parametrize(
    "kinds",
    [("tied", "tied"), ("tied", "tied, head stored"), ("tied, head stored", "tied, head stored")],
    ids=str,
)
def test_tied_models_merge_into_a_tied_one(place: Place, kinds: tuple[str, str]) -> None:
    models = head_models(place, *kinds)
    recipe = place.recipe("linear", parameters={"weight": 1.0})
    found = place.merged(recipe)

    assert HEAD not in found
    assert raw(found[EMBEDDING]) == mean(*(model[EMBEDDING] for model in models))
    assert '"tie_word_embeddings": true' in (place / "out" / "config.json").read_text()


@pytest.mark.parametrize("kinds", [("untied", "tied"), ("tied", "untied")], ids=str)
def test_an_untied_source_gives_the_output_a_head_of_its_own(
    place: Place, kinds: tuple[str, str]
) -> None:
    models = head_models(place, *kinds)
    found = place.merged(place.recipe("linear", parameters={"weight": 1.0}))

    heads = (model.get(HEAD, model[EMBEDDING]) for model in models)
    assert raw(found[HEAD]) == mean(*heads)
    assert '"tie_word_embeddings": false' in (place / "out" / "config.json").read_text()


@pytest.mark.parametrize("other", ["tied", "untied", "tied, head stored"])
def test_a_head_that_is_said_to_be_tied_and_is_not_is_refused(place: Place, other: str) -> None:
    head_models(place, "lying", other)
    done = place.merge(place.recipe("linear", parameters={"weight": 1.0}), "out", "--json")

    assert (done.rc, done.error["source"], done.error["tensor"]) == (3, "a", HEAD)
    assert "tie_word_embeddings" in done.error["message"]
    assert not (place / "out" / "model.safetensors.index.json").exists()
