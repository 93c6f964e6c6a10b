"""Where raymerge differs from mergekit 0.1.5 on purpose: what it does, what we do, and why.

Each test runs both. The README lists these differences.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import Done, Place, read_tensors
from tests.peer.mergekit import Mergekit

pytestmark = pytest.mark.peer
Family = Callable[[str], Path]
NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


class Both:
    """A recipe run by both, in a folder with copies of a family to change."""

    def __init__(self, mergekit: Mergekit, models: Path, place: Place) -> None:
        self.mergekit = mergekit
        self.place = place
        for name in ("base", "a", "b"):
            shutil.copytree(models / name, place / name)

    def change(self, name: str, **tensors: Tensor | None) -> None:
        """Replace tensors of a model; None takes one away."""
        held = read_tensors(self.place / name) | tensors
        kept = {key: value.contiguous() for key, value in held.items() if value is not None}
        save_file(kept, self.place / name / "model.safetensors", metadata={"format": "pt"})

    def cast(self, dtype: torch.dtype) -> None:
        """Store every model in another precision."""
        for name in ("base", "a", "b"):
            tensors = read_tensors(self.place / name)
            self.change(name, **{key: value.to(dtype) for key, value in tensors.items()})
            path = self.place / name / "config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))

    def run(self, recipe: dict[str, Any]) -> tuple[Done, str]:
        """Our outcome, and why theirs failed if it did."""
        models = [
            {"model": str(self.place / m)} if isinstance(m, str) else m for m in recipe["models"]
        ]
        recipe = recipe | {"models": models}
        if "base_model" in recipe:
            recipe["base_model"] = str(self.place / recipe["base_model"])
        path = self.place / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        done = self.place.merge(path, "ours", "--json")
        return done, self.mergekit.run("mergekit-yaml", path, self.place / "theirs", "--quiet")

    def tensors(self, recipe: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What both made; both have to succeed."""
        done, failed = self.run(recipe)
        assert (done.rc, failed) == (0, ""), done.err
        return read_tensors(self.place / "ours"), read_tensors(self.place / "theirs")


@pytest.fixture
def llamas(mergekit: Mergekit, family: Family, place: Place) -> Both:
    return Both(mergekit, family("llama"), place)


def linear(**top: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": 1.0}, **top}


def over_base(method: str, *models: str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": "base",
        "models": list(models),
        "parameters": parameters,
    }


def test_an_unknown_key_is_refused_and_not_ignored(llamas: Both) -> None:
    done, failed = llamas.run(linear(paramaters={"weight": 5}))
    assert not failed
    assert done.rc == 2
    assert "Did you mean 'parameters'" in done.error["message"]


def test_a_tensor_that_no_table_lists_is_not_lost(llamas: Both) -> None:
    for name in ("a", "b"):
        llamas.change(name, **{"model.layers.0.extra.weight": torch.ones(4)})
    ours, theirs = llamas.tensors(linear())
    assert "model.layers.0.extra.weight" in ours
    assert "model.layers.0.extra.weight" not in theirs


def test_a_tensor_that_one_source_lacks_is_refused_and_not_dropped(llamas: Both) -> None:
    llamas.change("a", **{"model.layers.0.extra.weight": torch.ones(4)})
    done, failed = llamas.run(linear())
    assert not failed
    assert done.rc == 2
    assert "b lacks 1 tensors" in done.error["message"]


def test_weights_that_cancel_are_refused_and_give_no_nan(llamas: Both) -> None:
    models = [
        {"model": str(llamas.place / name), "parameters": {"weight": weight}}
        for name, weight in (("a", 1.0), ("b", -1.0))
    ]
    done, failed = llamas.run({"merge_method": "linear", "models": models})
    assert not failed
    assert not torch.isfinite(read_tensors(llamas.place / "theirs")[UP]).any()
    assert done.rc == 2


def test_a_nan_in_a_source_is_an_error_and_does_not_pass(llamas: Both) -> None:
    spoilt = read_tensors(llamas.place / "a")[UP]
    spoilt[3, 5] = torch.nan
    llamas.change("a", **{UP: spoilt})
    done, failed = llamas.run(linear())
    assert not failed
    assert read_tensors(llamas.place / "theirs")[UP].isnan().any()
    assert done.rc == 1
    assert f"{UP} holds a NaN or Inf at element {3 * spoilt.shape[1] + 5}" in done.error["message"]


def test_arithmetic_is_float32_and_not_the_sources_precision(llamas: Both) -> None:
    llamas.cast(torch.bfloat16)
    recipe = over_base("task_arithmetic", "a", "b", weight=0.3)
    ours, theirs = llamas.tensors(recipe)
    base, a, b = (read_tensors(llamas.place / name)[UP].double() for name in ("base", "a", "b"))
    exact = base + 0.3 * (a - base) + 0.3 * (b - base)
    assert (ours[UP].double() - exact).abs().max() < (theirs[UP].double() - exact).abs().max()


@pytest.mark.parametrize("method", ["arcee_fusion", "ramplus_tl"])
def test_the_output_has_the_precision_its_config_names(llamas: Both, method: str) -> None:
    llamas.cast(torch.bfloat16)
    ours, theirs = llamas.tensors(over_base(method, "a"))
    assert (ours[UP].dtype, theirs[UP].dtype) == (torch.bfloat16, torch.float32)
    for folder in ("ours", "theirs"):
        config = json.loads((llamas.place / folder / "config.json").read_text())
        assert config["dtype"] == "bfloat16"


def test_dare_divides_by_the_density_and_does_not_match_norms(llamas: Both) -> None:
    ours, theirs = llamas.tensors(over_base("dare_linear", "a", weight=1.0, density=0.25))
    base, a = (read_tensors(llamas.place / name)[UP].double() for name in ("base", "a"))
    for found, unbiased in ((ours, True), (theirs, False)):
        moved = found[UP].double() != base
        factors = (found[UP].double() - base)[moved] / (a - base)[moved]
        assert factors.std() < 1e-3
        assert (abs(float(factors.mean()) - 4) < 1e-3) == unbiased


def test_small_task_vectors_weigh_as_their_sizes_say_in_sce(llamas: Both) -> None:
    base = read_tensors(llamas.place / "base")
    signs = torch.ones_like(base[UP])
    llamas.change("a", **{UP: base[UP] + 1e-4 * signs})
    llamas.change("b", **{UP: base[UP] + 3e-4 * signs})
    ours, theirs = llamas.tensors(over_base("sce", "a", "b"))
    moved = [float((found[UP] - base[UP]).mean()) for found in (ours, theirs)]
    # Weights 0.1 and 0.9, by mean squares of 1 to 9, where mergekit takes one half each.
    assert moved == pytest.approx([2.8e-4, 2e-4], rel=1e-2)


def test_experts_stay_as_they_are_stored(mergekit: Mergekit, family: Family, place: Place) -> None:
    ours, theirs = Both(mergekit, family("mixtral"), place).tensors(linear())
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in ours
    assert "model.layers.0.mlp.experts.gate_up_proj" in theirs
    assert ours.keys() == read_tensors(place / "a").keys()


def test_a_vision_language_model_keeps_its_language_model(
    mergekit: Mergekit, family: Family, place: Place
) -> None:
    ours, theirs = Both(mergekit, family("llava"), place).tensors(linear())
    assert ours.keys() == read_tensors(place / "a").keys()
    assert not any("layers.3.self_attn" in name for name in theirs)


def test_the_last_slice_s_sources_all_reach_norm_and_head(llamas: Both) -> None:
    def take(name: str, start: int, stop: int) -> dict[str, Any]:
        return {"model": str(llamas.place / name), "layer_range": [start, stop]}

    path = llamas.place / "slices.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "merge_method": "linear",
                "slices": [
                    {"sources": [take("a", 0, 2)]},
                    {"sources": [take("a", 2, 4), take("b", 2, 4)]},
                ],
                "parameters": {"weight": 1.0},
            }
        )
    )
    ours = llamas.place.merged(path, "ours")[NORM]
    assert not llamas.mergekit.run("mergekit-yaml", path, llamas.place / "theirs", "--quiet")
    theirs = read_tensors(llamas.place / "theirs")[NORM]
    a, b = (read_tensors(llamas.place / name)[NORM] for name in ("a", "b"))
    assert torch.equal(theirs, a)
    assert torch.allclose(ours, (a + b) / 2)


def test_lists_by_layer_grow_with_the_layers(
    mergekit: Mergekit, family: Family, place: Place
) -> None:
    both = Both(mergekit, family("qwen"), place)
    taken = [{"model": str(place / "a"), "layer_range": span} for span in ([0, 3], [1, 4])]
    path = place / "slices.yaml"
    slices = [{"sources": [source]} for source in taken]
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    assert "layer_types" in both.mergekit.run("mergekit-yaml", path, place / "theirs", "--quiet")
    place.merged(path, "ours")
    config = json.loads((place / "ours" / "config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (6, 6)


def test_generation_config_stays_beside_a_chat_template(llamas: Both) -> None:
    done, _ = llamas.run(linear(chat_template="chatml"))
    assert done.rc == 0, done.err
    assert (llamas.place / "ours" / "generation_config.json").exists()
