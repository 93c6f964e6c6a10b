"""Side by side with mergekit 0.1.5, a program that is run and never imported.

    |a - b| <= 1e-6 * max(1, |x|)    for every entry, x the largest magnitude among the sources'

The two part by design in few places, which are counted here and not hidden: entries exactly at a
trim threshold (mergekit keeps whichever an unstable sort puts first), and the draws of DARE and
DELLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, read_tensors
from tests.peer.mergekit import Mergekit

pytestmark = pytest.mark.peer
Model = dict[str, Tensor]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[Model]]:
    """A float32 Llama with real configs, two fine-tunes of it, and `far`, which is none."""
    place = Place(tmp_path_factory.mktemp("peer"))
    base = tiny_llama_tensors(0, layers=4, hidden=32, vocab=64, dtype=torch.float32)
    models = [base, fine_tune(base, 1), fine_tune(base, 2)]
    far = tiny_llama_tensors(5, layers=4, hidden=32, vocab=64, dtype=torch.float32)
    place.model("far", far, config=llama_config(far))
    for name, tensors in zip(("base", "a", "b"), models, strict=True):
        place.model(name, tensors, config=llama_config(tensors))
    return place, models


def both(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, recipe: Path
) -> tuple[Model, Model]:
    """The tensors that raymerge and mergekit make of one recipe."""
    place, _ = sources
    ours = Place(tmp_path).merged(recipe, "ours")
    theirs = tmp_path / "theirs"
    failed = mergekit.run("mergekit-yaml", recipe, theirs, "--no-copy-tokenizer", "--quiet")
    assert not failed
    assert place.path.exists()
    found = read_tensors(theirs)
    assert ours.keys() == found.keys()
    return ours, found


def differing(ours: Model, theirs: Model, models: list[Model]) -> dict[str, int]:
    """Entries beyond the tolerance, by tensor."""
    counts = {}
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        largest = torch.stack([model[name].abs() for model in models]).amax(0).clamp(min=1)
        apart = (tensor.double() - theirs[name].double()).abs() > TOLERANCE * largest
        if apart.any():
            counts[name] = int(apart.sum())
    return counts


ATTENTION_AND_MLP = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]
BY_MLP = [{"filter": "mlp", "value": True}, {"filter": "norm", "value": True}, {"value": False}]
ROWS_AND_COLUMNS = {
    "nuslerp_flatten": [
        {"filter": "self_attn", "value": False},
        {"filter": "mlp", "value": False},
        {"filter": "norm", "value": False},
        {"value": True},
    ],
    "nuslerp_row_wise": BY_MLP,
}
"""Arcs of rows in attention, of columns in the MLPs, of the whole in embedding and head."""
EXACT: dict[str, tuple[str, Mapping[str, Mapping[str, Any]] | list[str], dict[str, Any]]] = {
    "linear": ("linear", {"base": {"weight": 0.2}, "a": {"weight": [0.3, 1.5]}, "b": {"weight": 2}},
               {}),
    "task_arithmetic": (
        "task_arithmetic",
        {"a": {"weight": ATTENTION_AND_MLP}, "b": {"weight": -0.4}},
        {"parameters": {"lambda": 0.7}},
    ),
    "slerp": ("slerp", ["base", "a"], {"parameters": {"t": ATTENTION_AND_MLP}}),
    "passthrough": (
        "passthrough",
        {"a": {"scale": [{"filter": "mlp", "value": 0.5}, {"value": 1}]}},
        {},
    ),
    "nuslerp": (
        "nuslerp",
        {"a": {"weight": ATTENTION_AND_MLP}, "b": {"weight": 0.6}},
        {"parameters": ROWS_AND_COLUMNS},
    ),
    "nuslerp of task vectors": (
        "nuslerp",
        {"a": {"weight": [0.3, 0.5]}, "b": {"weight": -0.2}},
        {"base": "base", "parameters": ROWS_AND_COLUMNS},
    ),
    "multislerp": (
        "multislerp",
        {"a": {"weight": 0.3}, "b": {"weight": 0.5}, "far": {"weight": -0.1}},
        {},
    ),
    "multislerp of task vectors": (
        "multislerp",
        {"a": {"weight": ATTENTION_AND_MLP}, "b": {"weight": 0.7}},
        {"base": "base", "parameters": {"normalize_weights": False, "eps": 0.001}},
    ),
    "multislerp of one": ("multislerp", {"a": {"weight": 0.3}}, {"base": "base"}),
    "karcher": ("karcher", ["a", "b", "far"], {}),
    "karcher with the base as one more source": (
        "karcher",
        ["a", "b"],
        {"base": "base", "parameters": {"max_iter": 3, "tol": 1e-4}},
    ),
    "model_stock": (
        "model_stock",
        ["a", "b"],
        {"base": "base", "parameters": {"filter_wise": BY_MLP}},
    ),
    "model_stock of three": ("model_stock", ["a", "b", "far"], {"base": "base"}),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_mergekit_gives_the_same_with_gradients_and_filters(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, case: str
) -> None:
    place, models = sources
    method, listed, top = EXACT[case]
    base = {"task_arithmetic": "base", "slerp": "base"}.get(method)
    recipe = place.recipe(method, listed, **{"base": base, "dtype": "float32", **top})
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    assert differing(ours, theirs, models) == {}


TRIMMED: dict[str, dict[str, Any]] = {
    "ties": {"normalize": True},
    "breadcrumbs": {"gamma": [0.001, 0.2]},
    "breadcrumbs_ties": {"gamma": 0.05, "normalize": True},
}


@pytest.mark.parametrize("method", TRIMMED)
def test_mergekit_trims_the_same_but_for_entries_at_a_threshold(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, method: str
) -> None:
    place, models = sources
    own = {
        "a": {"weight": 0.7, "density": [0.2, 0.5, 0.9]},
        "b": {"weight": [{"filter": "mlp", "value": [0.1, 1]}, {"value": 0.5}], "density": 0.4},
    }
    knobs = {"lambda": 0.9, **TRIMMED[method]}
    recipe = place.recipe(method, own, base="base", dtype="float32", parameters=knobs)
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    counts = differing(ours, theirs, models)
    tied = at_thresholds(place, recipe, models)
    assert all(counts[name] <= tied[name] for name in counts), counts
    # In float32 hardly two entries are equal: the comparison is one of all but everything.
    entries = sum(tensor.numel() for tensor in ours.values())
    assert sum(tied.values()) <= 0.002 * entries, tied
    assert sum(counts.values()) <= sum(tied.values())


def at_thresholds(place: Place, recipe: Path, models: list[Model]) -> dict[str, int]:
    """Entries whose magnitude equals that of the last one kept or dropped, where others do too."""
    plan = place.run("plan", recipe, "--json").json
    found = {}
    for tensor in plan["tensors"]:
        knobs = plan["steps"][tensor["step"]]["knobs"]
        densities = knobs["density"]
        gammas = knobs.get("gamma", [0.0] * len(densities))
        base, *tuned = (model[tensor["name"]] for model in models)
        number = 0
        for density, gamma, source in zip(densities, gammas, tuned, strict=False):
            magnitude = (source - base).abs().view(-1)
            largest = magnitude.sort(descending=True).values
            target = max(1, int(density * magnitude.numel()))
            bottom = max(0, magnitude.numel() - target - int(gamma * magnitude.numel()))
            last = magnitude.numel() - bottom
            for rank in {last - target, last} - {0}:
                ties = int((magnitude == largest[rank - 1]).sum())
                number += ties if ties > 1 else 0
        found[tensor["name"]] = number
    return found


@pytest.mark.parametrize("method", ["dare_linear"])
def test_mergekit_draws_other_entries_of_the_same_number(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, method: str
) -> None:
    """DARE is compared by its properties: how many entries stay, and the mean of what stays."""
    place, (base, tuned, _) = sources
    recipe = place.recipe(
        method, {"a": {"weight": 1.0, "density": 0.3}}, base="base", dtype="float32",
        parameters={"rescale": True},
    )  # fmt: skip
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    deltas = torch.cat([(tuned[name] - base[name]).view(-1) for name in base])
    for merged in (ours, theirs):
        kept = torch.cat([(merged[name] - base[name]).view(-1) for name in base])
        share = (kept != 0).double().mean().item()
        assert abs(share - 0.3) < 0.01
        assert abs(kept.norm().item() / deltas.norm().item() - 0.3**-0.5) < 0.15


@pytest.mark.parametrize(("gamma", "density"), [(0.01, 1.0), (0.01, 0.9), (0.2, 0.9), (0.0, 0.5)])
def test_mergekit_keeps_the_same_band(
    sources: tuple[Place, list[Model]],
    mergekit: Mergekit,
    tmp_path: Path,
    gamma: float,
    density: float,
) -> None:
    """Density 1 keeps outliers too; norms of 32 have no whole outlier; 0.9 leaves 0.1 to drop."""
    place, models = sources
    own = {"a": {"weight": 1.0, "density": density, "gamma": gamma}}
    recipe = place.recipe("breadcrumbs", own, base="base", dtype="float32")
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    counts = differing(ours, theirs, models)
    tied = at_thresholds(place, recipe, models)
    assert all(counts[name] <= tied[name] for name in counts), counts
    assert sum(tied.values()) <= 0.002 * sum(tensor.numel() for tensor in ours.values())


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_mergekit_draws_by_rank_as_often(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, method: str
) -> None:
    """DELLA is compared by how many of the smaller and the larger half of each row stay, and by
    what becomes of the L1 norm, which mergekit's rescaling leaves as it was.
    """
    place, (base, tuned, _) = sources
    own = {"a": {"weight": 1.0, "density": 0.4, "epsilon": 0.2}}
    recipe = place.recipe(
        method, own, base="base", dtype="float32", parameters={"rescale": True}, name="their.yaml"
    )
    _, theirs = both(sources, mergekit, tmp_path, recipe)
    matched = place.recipe(
        method, own, base="base", dtype="float32", parameters={"rescale": "l1"}, name="our.yaml"
    )
    ours = Place(tmp_path).merged(matched, "l1")

    names = [name for name in base if base[name].dim() == 2]
    deltas = {name: tuned[name] - base[name] for name in names}
    for merged in (ours, theirs):
        shares: list[list[float]] = [[], []]
        for name in names:
            kept = merged[name] - base[name]
            assert kept.abs().sum() == pytest.approx(deltas[name].abs().sum().item(), rel=1e-3)
            ranks = deltas[name].abs().argsort(1).argsort(1)
            for half in (0, 1):
                inside = ranks // (ranks.shape[1] // 2) == half
                shares[half] += (kept[inside] != 0).tolist()
        # From 0.2 to 0.6 along a row: 0.3 on average in the smaller half, 0.5 in the larger.
        for share, expected in zip(shares, (0.3, 0.5), strict=True):
            assert abs(sum(share) / len(share) - expected) < 0.02


def test_mergekit_too_refuses_probabilities_beyond_1(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path
) -> None:
    place, _ = sources
    own = {"a": {"weight": 1.0, "density": 0.9}}
    recipe = place.recipe("della", own, base="base", dtype="float32")
    done = Place(tmp_path).merge(recipe)
    assert done.rc == 2
    assert "density 0.9 and epsilon 0.15 of a" in done.err

    assert mergekit.run(
        "mergekit-yaml", recipe, tmp_path / "theirs", "--no-copy-tokenizer", "--quiet"
    )


def test_it_is_the_version_that_the_readme_names(mergekit: Mergekit) -> None:
    assert mergekit.version == "0.1.5"


FREE: dict[str, tuple[list[str], dict[str, Any]]] = {
    "nearswap": (["a"], {"t": [0.002, 0.01, 0.03]}),
    "ram": (["a", "b"], {"epsilon": 0.01}),
    "ramplus_tl": (["a", "b"], {"epsilon": 0.01, "r": 0.5, "alpha": 0.9}),
    "sce": (["a", "b"], {}),
}


@pytest.mark.parametrize("method", FREE)
def test_mergekit_gives_the_same_of_a_free_method(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path, method: str
) -> None:
    place, models = sources
    listed, knobs = FREE[method]
    recipe = place.recipe(method, listed, base="base", dtype="float32", parameters=knobs)
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    assert differing(ours, theirs, models) == {}


def test_mergekit_gives_the_same_sce_but_for_entries_at_the_threshold(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path
) -> None:
    """Its variance is rounded otherwise: entries as near the threshold may change places."""
    place, models = sources
    knobs = {"select_topk": [0.1, 0.5, 0.9]}
    recipe = place.recipe("sce", ["a", "b"], base="base", dtype="float32", parameters=knobs)
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    near = {}
    plan = place.run("plan", recipe, "--json").json
    for tensor in plan["tensors"]:
        share = plan["steps"][tensor["step"]]["knobs"]["select_topk"]
        deltas = [(model[tensor["name"]] - models[0][tensor["name"]]).double() for model in models]
        variance = torch.stack(deltas[1:]).var(0, unbiased=False).view(-1)
        last = variance.sort(descending=True).values[int(share * variance.numel()) - 1]
        near[tensor["name"]] = int(((variance - last).abs() <= 1e-5 * last).sum())
    assert_few_differ(ours, differing(ours, theirs, models), near)


def test_mergekit_gives_the_same_arcee_fusion_but_for_entries_at_the_threshold(
    sources: tuple[Place, list[Model]], mergekit: Mergekit, tmp_path: Path
) -> None:
    """Its divergence is float32: entries as near the threshold as that is wrong may be either's."""
    place, models = sources
    recipe = place.recipe("arcee_fusion", ["a"], base="base", dtype="float32")
    ours, theirs = both(sources, mergekit, tmp_path, recipe)

    near = {}
    for name, base, tuned in ((name, models[0][name], models[1][name]) for name in ours):
        p, q = (values.double().softmax(-1) + 1e-8 for values in (tuned, base))
        divergence = (p * (p / q).log()).sum(-1, keepdim=True)
        importance = ((tuned - base).double().abs() * divergence).view(-1)
        ranked = importance.sort().values
        first, middle, third = (ranked[int(q * (len(ranked) - 1))] for q in (0.25, 0.5, 0.75))
        threshold = middle + 1.5 * (third - first)
        near[name] = int(((importance - threshold).abs() <= 0.02 * threshold).sum())
    assert_few_differ(ours, differing(ours, theirs, models), near)


def assert_few_differ(ours: Model, counts: dict[str, int], near: dict[str, int]) -> None:
    """Only entries near a threshold differ, and those are few."""
    assert all(count <= near[name] for name, count in counts.items()), (counts, near)
    entries = sum(tensor.numel() for tensor in ours.values())
    assert sum(counts.values()) <= 0.002 * entries, counts
