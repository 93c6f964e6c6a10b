"""Sources in FP8 merge as the weights they stand for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import llama_config, tiny_llama_tensors
from tests.conftest import Place, read_tensors

CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}


def encoded(
    tensors: dict[str, Tensor], *, block: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model with its layers' matrices in block FP8, and the weights that stands for."""
    stored, meant = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or ".layers." not in name:
            continue
        rows, columns = tensor.shape
        grid = -(-rows // block), -(-columns // block)
        scale = torch.rand(grid) * 1e-3 + 1e-4
        spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[:rows, :columns]
        codes = (tensor.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored |= {name: codes, f"{name}_scale_inv": scale}
        meant[name] = (codes.float() * spread).bfloat16()
    return stored, meant


@pytest.fixture
def place(place: Place) -> Place:
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        tensors = {n: t.bfloat16() for n, t in tiny_llama_tensors(seed=seed).items()}
        stored, meant = encoded(tensors, block=8)
        config: dict[str, Any] = llama_config(tensors)
        place.model(f"{name}-fp8", stored, config={**config, **CONFIG})
        place.model(name, meant, config=config)
    return place


RAY = ("--engine", "ray", "--workers", 1)


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", ()), ("slerp", ()), ("ties", ()), ("dare_linear", ()), ("ties", RAY)],
    ids=str,
)
def test_codes_merge_as_the_weights_they_stand_for(
    place: Place, method: str, options: tuple[object, ...]
) -> None:
    outputs = []
    for suffix in ("", "-fp8"):
        sources = ["b"] if method == "slerp" else ["a", "b"]
        recipe = {
            "merge_method": method,
            "models": [{"model": str(place / (s + suffix)), "label": s} for s in sources],
            "parameters": {"weight": 0.6, "density": 0.4, "t": 0.3},
        }
        if method != "linear":
            recipe["base_model"] = {"model": str(place / f"base{suffix}"), "label": "base"}
        file = place / f"{method}{suffix}.yaml"
        file.write_text(json.dumps(recipe))
        done = place.run("merge", file, place / f"out{suffix}", "--json", *options)
        assert done.rc == 0, done.err
        outputs.append(read_tensors(place / f"out{suffix}"))
    plain, coded = outputs

    assert set(plain) == set(coded)
    assert all(torch.equal(plain[name], coded[name]) for name in plain)
    config = json.loads((place / "out-fp8" / "config.json").read_text())
    assert "quantization_config" not in config
    assert place.run("verify", place / "out-fp8").rc == 0


def test_the_plan_says_what_becomes_of_the_codes(place: Place) -> None:
    file = place / "r.yaml"
    file.write_text(json.dumps({"merge_method": "passthrough", "models": [str(place / "a-fp8")]}))
    done = place.run("plan", file)
    assert "FP8 tensors are widened by their scales to bfloat16" in done.out
    graph = place.run("plan", file, "--graph", "model.layers.0.mlp.up_proj.weight")
    assert "float8_e4m3fn x" in graph.out
    assert "copy" in graph.out
