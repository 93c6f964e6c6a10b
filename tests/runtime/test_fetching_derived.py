"""Remote sources that are worked out as they are read: what they are made of was foreseen too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import raymerge
from tests.adapters import factors, modules_of, write_adapter
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, shard_hashes
from tests.distant import Distance, planned, remotely, requests, run
from tests.e2e.test_adapters import adapters_for, prepare
from tests.e2e.test_experts import model as experts
from tests.e2e.test_experts import packed
from tests.e2e.test_fp8 import CONFIG, encoded
from tests.e2e.test_stages import CASES, MODELS, fused
from tests.e2e.test_vocabularies import ORDER, write_models


def adapters(place: Place) -> Path:
    prepare(place)
    return adapters_for(place, place.any_recipe("ties"), alone=False)


def magnitudes(place: Place) -> Path:
    base = place.llamas(0)
    shapes = modules_of(base, "q_proj", "down_proj")
    drawn = factors(shapes, seed=1, rank=3)
    for module, (outputs, _) in shapes.items():
        drawn[f"{module}.lora_magnitude_vector"] = torch.rand(outputs) + 0.5
    write_adapter(place / "lora", drawn, r=3, use_dora=True)
    path = place / "r.yaml"
    model = f"{place / 'base'}+{place / 'lora'}"
    recipe = {
        "merge_method": "linear",
        "models": [{"model": model}, {"model": str(place / "base")}],
    }
    path.write_text(yaml.safe_dump({**recipe, "parameters": {"weight": 0.5}}))
    return path


def fp8(place: Place) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        tensors = tiny_llama_tensors(seed=seed)
        stored, _ = encoded(tensors, block=8)
        config: dict[str, Any] = llama_config(tensors)
        place.model(name, stored, config={**config, **CONFIG})
    return place.any_recipe("ties")


def experts_apart(place: Place) -> Path:
    place.model("base", experts(0))
    place.model("a", packed(experts(1)))
    place.model("b", experts(2))
    return place.any_recipe("ties")


def experts_packed(place: Place) -> Path:
    place.model("base", packed(experts(0)))
    place.model("a", experts(1))
    place.model("b", packed(experts(2)))
    return place.any_recipe("model_stock")


def vocabularies(place: Place) -> Path:
    write_models(place, padding=3, dtype=torch.bfloat16)
    return place.recipe("linear", ORDER, parameters={"weight": 1.0}, tokenizer_source="union")


def mean_padding(place: Place) -> Path:
    write_models(place, padding=3, dtype=torch.bfloat16)
    policy = {"source": "union", "pad_to_multiple_of": 64}
    return place.recipe("linear", ORDER, parameters={"weight": 1.0}, tokenizer=policy)


def twins(place: Place) -> Path:
    tensors = tiny_llama_tensors(1)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    config = llama_config(tensors, tied=True)
    place.model("a", tensors, config=config)
    return place.recipe("passthrough", ["a"])


def copies(place: Place) -> Path:
    for name in ("a", "b"):
        place.model(name, {"w": torch.ones(300, 200), "ids": torch.arange(700_000)})
    return place.recipe("linear", parameters={"weight": 1})


@pytest.mark.parametrize("hold", [True, False], ids=["held", "again"])
@pytest.mark.parametrize(
    "prepared",
    [
        *(adapters, magnitudes, fp8, experts_apart, experts_packed),
        *(vocabularies, mean_padding, twins, copies),
    ],
    ids=lambda prepared: prepared.__name__,
)
def test_bytes_and_requests_are_those_foreseen(place: Place, prepared: Any, *, hold: bool) -> None:
    recipe = prepared(place)
    raymerge.merge(recipe, place / "near", engine="local", device="cpu", workers=2)

    # Megabytes in ranges of 128 bytes would be ninety thousand requests.
    least = 2**17 if prepared is copies else 2**10
    for window_bytes, tile in ((least, 256), (2**14 * least // 2**10, None), (2**26, 512)):
        plan = remotely(planned(recipe, tile), window_bytes, hold=hold)
        run(plan, place / "far", distance := Distance())

        assert shard_hashes(place / "far") == shard_hashes(place / "near")
        assert Counter(distance.asked) == requests(plan)
        assert distance.fetched_bytes <= plan.bytes_read


@pytest.mark.parametrize("hold", [True, False], ids=["held", "again"])
@pytest.mark.parametrize("case", CASES)
def test_stages_too(place: Place, case: str, *, hold: bool) -> None:
    base = tiny_llama_tensors(0, layers=1)
    for number, name in enumerate(MODELS):
        tensors = fine_tune(base, number) if number else base
        place.model(name, tensors, config=llama_config(tensors))
    recipe = fused(place, CASES[case])
    raymerge.merge(recipe, place / "near", engine="local", device="cpu", workers=2)

    for window_bytes, tile in ((2**10, 256), (2**26, None)):
        plan = remotely(planned(recipe, tile), window_bytes, hold=hold)
        run(plan, place / "far", distance := Distance())

        assert shard_hashes(place / "far") == shard_hashes(place / "near")
        assert Counter(distance.asked) == requests(plan)
