"""Adapters through the command line: merged as if the adapter had been merged first."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import raymerge
from raymerge.errors import SourceError
from raymerge.machine import Machine
from raymerge.plan.build import Plan
from raymerge.runtime import ray_cluster
from tests.adapters import factors, modules_of, with_adapter, write_adapter
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import METHOD_KNOBS, WITHOUT_BASE, Place, finish, raw, shard_hashes, spawn
from tests.e2e.test_memory import BUDGET_MIB, peak_anonymous_bytes

Model = dict[str, Tensor]
ADAPTED = ("q_proj", "v_proj", "down_proj", "lm_head")
UP = "model.layers.0.mlp.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def prepare(place: Place, **options: Any) -> dict[str, Model]:
    """Write `base`, the adapters `lora-a` and `lora-b`, and `a` and `b`: the base with each."""
    base = place.llamas(0, **options)
    models = {"base": base}
    for seed, name in enumerate("ab", start=1):
        drawn = factors(modules_of(base, *ADAPTED), seed=seed, rank=seed + 3)
        own = {"model.norm.weight": base["model.norm.weight"] * 1.5}
        write_adapter(place / f"lora-{name}", {**drawn, **own}, r=seed + 3)
        models[name] = {**with_adapter(base, drawn, alpha=8), **own}
        place.model(name, models[name], config=llama_config(base), max_shard_bytes=12_000)
    return models


def adapters_for(place: Place, recipe: Path, *, alone: bool) -> Path:
    """The recipe with every merged model replaced by its adapter, under the model's label."""
    document = json.loads(json.dumps(_read(recipe)))
    for entry in document["models"]:
        name = Path(entry["model"]).name
        adapter = str(place / f"lora-{name}")
        entry["model"] = adapter if alone else f"{place / 'base'}+{adapter}"
        entry["label"] = name
    path = place / "adapters.yaml"
    path.write_text(json.dumps(document))
    return path


def _read(recipe: Path) -> Any:
    return yaml.safe_load(recipe.read_text())


@pytest.mark.parametrize(
    ("method", "alone"),
    [
        ("dare_ties", False),
        ("linear", False),
        ("passthrough", False),
        ("slerp", False),
        ("dare_ties", True),
        ("linear", True),
        ("slerp", True),
        ("ties", True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_are_those_of_merging_the_adapter_first(
    place: Place,
    method: str,
    alone: bool,  # noqa: FBT001
    dtype: torch.dtype,
) -> None:
    base = prepare(place, dtype=dtype)["base"]
    first = place.any_recipe(method)
    if alone and method in WITHOUT_BASE:
        first = place.recipe(method, base="base", parameters=METHOD_KNOBS[method])
    merged = place.merged(first, "merged")
    direct = place.merged(adapters_for(place, first, alone=alone), "direct")

    assert direct.keys() == merged.keys()
    for name, tensor in merged.items():
        assert raw(direct[name]) == raw(tensor), name
    assert any(not torch.equal(direct[name], base[name]) for name in base)


def ties_over_two(place: Place) -> Path:
    return adapters_for(place, place.any_recipe("ties"), alone=False)


def test_tiles_and_workers_change_nothing(place: Place) -> None:
    prepare(place, hidden=64)
    recipe = ties_over_two(place)
    hashes = []
    for tile, workers in ((256, 1), (512, 2), (None, 2)):
        out = place / f"{tile}-{workers}"
        raymerge.merge(
            recipe, out, engine="local", device="cpu", workers=workers, tile_elements=tile
        )
        hashes.append(shard_hashes(out))
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.ray
# Ray leaves its processes' handles and pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_gives_the_bytes_of_the_local_engine(place: Place) -> None:
    prepare(place)
    recipe = ties_over_two(place)
    options = ["--device", "cpu", "--workers", 2, "--shard-size", 4000, "--memory", "1GiB"]
    local = place.run("merge", recipe, place / "local", "--engine", "local", "--json", *options)
    ray_cluster.connect(None, workers=2)
    try:
        done = place.run("merge", recipe, place / "ray", "--engine", "ray", "--json", *options)
    finally:
        ray.shutdown()
    assert (local.rc, done.rc) == (0, 0), done.err
    assert (local.json["engine"], done.json["engine"]) == ("local", "ray")
    assert local.json["shards"] == done.json["shards"]
    assert local.json["bytes_read"] == done.json["bytes_read"]


def test_the_plan_shows_the_adapters(place: Place) -> None:
    prepare(place)
    recipe = place.recipe(
        "ties", [f"base+{place / 'lora-a'}"], base="base", parameters={"weight": 1}
    )
    shown = place.run("plan", recipe)
    assert shown.rc == 0, shown.err
    assert "base+lora-a adapter" in shown.out
    assert "adapter of base+lora-a: rank 4, scaling 2, 7 tensors, 1 replaced" in shown.out
    assert "trained on org/base" not in shown.out
    graph = place.run("plan", recipe, "--graph", QUERY).out
    assert re.search(r"base\+lora-a +base \+ 2 B@A \(rank 4\) +3 stored tensors", graph)
    replaced = place.run("plan", recipe, "--graph", "model.norm.weight").out
    assert re.search(r"base\+lora-a +the adapter's +1 stored tensors", replaced)
    document = place.run("plan", recipe, "--json").json
    assert [source["label"] for source in document["sources"]] == [
        "base", "base+lora-a", "base+lora-a adapter",
    ]  # fmt: skip
    assert [file["name"] for file in document["sources"][2]["files"]] == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_card_and_record_name_the_adapter(place: Place) -> None:
    prepare(place)
    place.merged(ties_over_two(place))
    card = (place / "out" / "README.md").read_text()
    assert "| a adapter | adapter of a: rank 4, scaling 2, 7 tensors, 1 replaced |" in card
    assert "\n- a adapter\n" in card
    record = json.loads((place / "out" / "raymerge.json").read_text())
    assert [source["label"] for source in record["sources"]] == [
        "base", "a", "b", "a adapter", "b adapter",
    ]  # fmt: skip
    assert not (place / "out" / "adapter_config.json").exists()


def test_a_base_with_an_adapter_gives_its_models_config(place: Place) -> None:
    models = prepare(place)
    recipe = place.recipe("ties", ["b"], base="base", parameters={"weight": 1.0})
    document = _read(recipe)
    document["base_model"] = {"model": document["base_model"], "lora": str(place / "lora-a")}
    recipe.write_text(json.dumps(document))
    merged = place.merged(recipe)
    assert {name: raw(one) for name, one in merged.items()} == {
        name: raw(one) for name, one in models["b"].items()
    }
    assert json.loads((place / "out" / "config.json").read_text())["vocab_size"] == 32


@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_nan_in_a_factor_is_found(place: Place, factor: str) -> None:
    prepare(place)
    path = place / "lora-a" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight"][1, 1] = np.nan
    save_file(tensors, path)
    done = place.merge(ties_over_two(place), "out", "--json")
    assert done.rc == 1
    assert done.error["type"] == "NonFiniteError"
    assert (done.error["source"], done.error["tensor"]) == ("a", QUERY)


def test_an_adapter_that_changes_under_the_merge_is_an_error(place: Place) -> None:
    prepare(place)
    weights = place / "lora-a" / "adapter_model.safetensors"

    def rewrite(_plan: Plan, _machine: Machine) -> None:
        tensors = load_file(weights)
        weights.unlink()
        save_file(tensors, weights)

    with pytest.raises(SourceError, match=r"a adapter: .* changed since it was planned"):
        raymerge.merge(
            ties_over_two(place), place / "out", engine="local", device="cpu", on_plan=rewrite
        )


def test_a_base_with_its_adapter_alone_is_the_two_merged(place: Place) -> None:
    prepare(place)
    adapted = f"base+{place / 'lora-a'}"
    alone = place.recipe("task_arithmetic", {adapted: {"weight": 1}}, base=adapted)
    place.merged(alone, "alone")
    place.merged(place.recipe("passthrough", [adapted]), "passed")

    assert shard_hashes(place / "alone") == shard_hashes(place / "passed")


def test_a_head_and_embedding_saved_with_a_tied_model_must_agree(place: Place) -> None:
    base = tiny_llama_tensors(0, tied=True)
    place.model("base", base, config=llama_config(base, tied=True))
    embedding = fine_tune({"e": base["model.embed_tokens.weight"]}, 1)["e"].float()
    whole = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}
    write_adapter(place / "lora", whole)
    recipe = place.recipe("passthrough", [f"base+{place / 'lora'}"])
    merged = place.merged(recipe)
    assert merged.keys() == base.keys()
    assert torch.equal(merged["model.embed_tokens.weight"], embedding.bfloat16())
    write_adapter(place / "lora", {**whole, "lm_head.weight": embedding + 1})
    done = place.merge(recipe, "other", "--json")
    assert done.rc == 3
    assert "config.json says the head is tied, but lm_head.weight differs" in done.error["message"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_saved_alone_becomes_the_output_s(place: Place, tied: bool) -> None:  # noqa: FBT001
    base = tiny_llama_tensors(0, tied=True)
    place.model("base", base, config=llama_config(base, tied=tied))
    head = fine_tune({"e": base["model.embed_tokens.weight"]}, 1)["e"].float()
    write_adapter(place / "lora", {"lm_head.weight": head})
    merged = place.merged(place.recipe("passthrough", [f"base+{place / 'lora'}"]), "out")
    assert merged.keys() == base.keys() | {"lm_head.weight"}
    assert torch.equal(merged["lm_head.weight"], head.bfloat16())
    written = json.loads((place / "out" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert place.run("verify", place / "out").rc == 0
    dropped = place.recipe("passthrough", [f"base+{place / 'lora'}"], drop=["lm_head.weight"])
    assert "own" not in place.run("plan", dropped).out
    assert place.merged(dropped, "dropped").keys() == base.keys()
    written = json.loads((place / "dropped" / "config.json").read_text())
    assert written["tie_word_embeddings"] is True


def test_a_model_folder_is_no_adapter_and_an_absent_one_is_named(place: Place) -> None:
    prepare(place)
    model = place.recipe("passthrough", [f"base+{place / 'a'}"])
    done = place.run("plan", model)
    assert done.rc == 3
    assert "base+a adapter:" in done.err
    assert "is no LoRA adapter: there is no adapter_config.json in it" in done.err
    shutil.rmtree(place / "lora-a")
    done = place.run("plan", place.recipe("passthrough", [f"base+{place / 'lora-a'}"]))
    assert done.rc == 3
    assert "lora-a does not exist" in done.err


def test_measured_memory_is_below_the_projection(place: Place) -> None:
    """Wide factors: they are kept widened while their tensor is merged."""
    shape, rank = (64, 65536), 64
    generator = torch.Generator().manual_seed(0)
    base = {
        f"model.layers.{i}.q_proj.weight": torch.empty(shape, dtype=torch.bfloat16) for i in (0, 1)
    }
    for tensor in base.values():
        tensor.normal_(generator=generator)
    place.model("base", base)
    for seed in (1, 2):
        drawn = factors(modules_of(base, "q_proj"), seed=seed, rank=rank, dtype=torch.bfloat16)
        magnitudes = {
            name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(shape[0])
            for name in drawn
            if "lora_A" in name
        }
        write_adapter(place / f"lora-{seed}", {**drawn, **magnitudes}, r=rank, use_dora=True)
    models = [str(place / f"lora-{seed}") for seed in (1, 2)]
    recipe = place.recipe("ties", models, base="base", parameters={"weight": 1.0, "density": 0.3})
    budget = ["--memory", f"{BUDGET_MIB}MiB", "--workers", "2", "--device", "cpu"]
    local = ["--engine", "local", "--json", "--shard-size", "6MiB"]
    plan = place.run("plan", recipe, *budget, *local).json["memory"]
    process = spawn("merge", recipe, place / "out", *budget, *local)
    measured = peak_anonymous_bytes(process)
    done = finish(process)

    assert done.rc == 0, done.err
    assert measured <= plan["projected_host_bytes"] <= plan["budget_bytes"]
    # The factors are in it, widened: of two sources on each of two threads.
    assert plan["projected_host_bytes"] > 256 * 2**20 + 2 * 2 * 8 * shape[1] * rank
