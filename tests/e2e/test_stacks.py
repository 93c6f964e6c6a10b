"""Stacked models, whole: the same as mergekit 0.1.5 makes, and models that transformers runs."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from raymerge.checkpoint.strict_json import parse_config
from tests.conftest import Place, read_tensors
from tests.e2e.test_transformers import save_llama
from tests.peer.mergekit import Mergekit
from tests.peer.test_knobs import differing, sources  # noqa: F401 - a fixture

Model = dict[str, Tensor]


def take(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    own = {"parameters": parameters} if parameters else {}
    return {"model": model, "layer_range": [start, stop], **own}


BY_TWO = [{"filter": "layers.2.", "value": 1}, {"value": 0.25}]
RECIPES: dict[str, dict[str, Any]] = {
    "repeated layers": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [take("a", 0, 3)]},
            {"sources": [take("b", 1, 4)]},
            {"sources": [take("a", 2, 4, scale=[{"filter": "o_proj", "value": 0}, {"value": 1}])]},
        ],
    },
    "a model cut short, its config from a base without layers": {
        "merge_method": "passthrough",
        "base_model": "base",
        "slices": [{"sources": [take("a", 0, 1)]}, {"sources": [take("b", 3, 4)]}],
    },
    "other layers of other models": {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "slices": [
            {"sources": [take("a", 0, 2, weight=0.3), take("b", 1, 3)],
             "parameters": {"weight": [{"filter": "mlp", "value": 0.7}, {"value": 0.1}]}},
            {"sources": [take("a", 2, 4, weight=[0, 1]), take("b", 2, 4, weight=[1, 0.1])]},
        ],
    },
    "filters of sources see their own names": {
        "merge_method": "linear",
        "slices": [
            {"sources": [take("a", 2, 4, weight=BY_TWO), take("b", 2, 4, weight=0.5)]},
            {"sources": [take("a", 0, 2, weight=BY_TWO), take("b", 0, 2, weight=3)]},
        ],
    },
    "shared filters see the output's names": {
        "merge_method": "slerp",
        "base_model": "base",
        "parameters": {"t": [*BY_TWO[:1], {"filter": "mlp", "value": [0, 1]}, {"value": [1, 0.2]}]},
        "slices": [
            {"sources": [take("base", 2, 4), take("a", 0, 2)]},
            {"sources": [take("a", 0, 3), take("base", 0, 3)], "parameters": {"t": [0.1, 0.9]}},
        ],
    },
    "one layer": {
        "merge_method": "slerp",
        "base_model": "base",
        "parameters": {"t": [0.25, 0.75]},
        "slices": [{"sources": [take("base", 1, 2), take("a", 1, 2)]}],
    },
    "bases of their own": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "parameters": {"weight": 0.5, "lambda": [0.5, 1]},
        "slices": [
            {"sources": [take("base", 0, 2), take("a", 0, 2), take("b", 2, 4, weight=[0.1, 0.9])]},
            {"sources": [take("a", 1, 4), take("b", 1, 4)], "base_model": "a"},
        ],
    },
    "slices of a module": {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "modules": {"default": {
            "parameters": {"weight": 2.0},
            "slices": [
                {"sources": [take("a", 0, 2), take("b", 0, 2, weight=1)]},
                {"sources": [take("a", 0, 2)], "parameters": {"weight": 0.5}},
            ],
        }},
    },
    "models of a module": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "parameters": {"weight": 1.0},
        "modules": {"default": {
            "parameters": {"weight": [0.2, 0.4]},
            "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 0.9}}],
        }},
    },
}  # fmt: skip


def located(value: Any, place: Path) -> Any:
    """The recipe with the models' whole paths."""
    if isinstance(value, list):
        return [located(item, place) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(place / inner) if key in ("model", "base_model") else located(inner, place)
        for key, inner in value.items()
    }


def theirs(mergekit: Mergekit, recipe: Path, out: Path) -> tuple[Model, dict[str, Any]]:
    assert not mergekit.run("mergekit-yaml", recipe, out, "--no-copy-tokenizer", "--quiet")
    return read_tensors(out), config_of(out)


def config_of(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    return dict(parse_config(path.read_bytes(), file=path.name, source="merged"))


@pytest.mark.peer
@pytest.mark.parametrize("case", RECIPES)
def test_mergekit_stacks_the_same(
    sources: tuple[Place, list[Model]],  # noqa: F811
    mergekit: Mergekit,
    tmp_path: Path,
    case: str,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    document = located({**RECIPES[case], "dtype": "float32"}, sources[0].path)
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    ours = Place(tmp_path).merged(recipe, "ours")
    found, config = theirs(mergekit, recipe, tmp_path / "theirs")

    assert ours.keys() == found.keys()
    largest = {name: found[name].abs() for name in found}
    assert differing(ours, found, [largest]) == {}
    assert config_of(tmp_path / "ours")["num_hidden_layers"] == config["num_hidden_layers"]


@pytest.mark.peer
def test_mergekit_loses_sources_of_the_last_slice_from_norm_and_head(
    sources: tuple[Place, list[Model]],  # noqa: F811
    mergekit: Mergekit,
    tmp_path: Path,
) -> None:
    """A deliberate difference: where the first slice has fewer sources, mergekit drops the others
    from what stands after the layers. Here the last slice's sources all count."""
    place, (_, a, b) = sources
    document = {
        "merge_method": "linear",
        "parameters": {"weight": 1.0},
        "dtype": "float32",
        "slices": [
            {"sources": [take("a", 0, 2)]},
            {"sources": [take("a", 2, 4), take("b", 2, 4)]},
        ],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(located(document, place.path), sort_keys=False))
    ours = Place(tmp_path).merged(recipe, "ours")
    found, _ = theirs(mergekit, recipe, tmp_path / "theirs")

    apart = {name for name in ours if not torch.allclose(ours[name], found[name], atol=1e-6)}
    assert apart == {"model.norm.weight", "lm_head.weight"}
    for name in apart:
        assert torch.equal(found[name], a[name])
        torch.testing.assert_close(ours[name], (a[name] + b[name]) / 2, rtol=0, atol=1e-7)


# --- transformers --------------------------------------------------------------------------------


def merged_model(place: Place, document: dict[str, Any]) -> Any:
    """A merge as transformers loads it, with every key in its place."""
    from transformers import AutoModelForCausalLM

    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(located(document, place.path)))
    done = place.merge(path)
    assert done.rc == 0, done.err
    loaded, report = AutoModelForCausalLM.from_pretrained(
        place / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    verified = place.run("verify", place / "out")
    assert verified.rc == 0, verified.out
    return loaded.eval()


def stacked(*ranges: tuple[str, int, int]) -> dict[str, Any]:
    slices = [{"sources": [take(*layers)]} for layers in ranges]
    return {"merge_method": "passthrough", "slices": slices}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("said", [True, False], ids=["said", "left to the class"])
def test_a_deeper_llama_loads_and_generates(place: Place, *, tied: bool, said: bool) -> None:
    models = {name: save_llama(place / name, seed, tied=tied) for seed, name in enumerate("ab")}
    if not said:
        path = place / "a" / "config.json"
        config = json.loads(path.read_text())
        del config["num_hidden_layers"]
        path.write_text(json.dumps(config))
    taken = (("a", 0, 2), ("b", 1, 3), ("a", 1, 3))
    loaded = merged_model(place, stacked(*taken))

    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 6
    origin = [models[name].model.layers[n] for name, *span in taken for n in range(*span)]
    for layer, source in zip(loaded.model.layers, origin, strict=True):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name])
    tokens = loaded.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=6, do_sample=False)
    assert tokens.shape[1] > 3


@pytest.mark.filterwarnings("default")
def test_a_stack_of_all_its_own_layers_is_the_model_itself(place: Place) -> None:
    from transformers import AutoModelForCausalLM

    save_llama(place / "a", 0)
    model = AutoModelForCausalLM.from_pretrained(place / "a", dtype="auto").eval()
    loaded = merged_model(place, stacked(("a", 0, 2), ("a", 2, 3)))
    prompt = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(loaded(prompt).logits, model(prompt).logits)
    config = json.loads((place / "a" / "config.json").read_text())
    assert config_of(place / "out") == config


@pytest.mark.filterwarnings("default")
def test_a_deeper_gpt2_loads_and_runs(place: Place) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=50, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(place / "a")
    loaded = merged_model(place, stacked(("a", 0, 3), ("a", 1, 3)))
    assert loaded.config.n_layer == len(loaded.transformer.h) == 5
    assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.filterwarnings("default")
def test_layers_of_two_kinds_keep_theirs_in_another_place(place: Place) -> None:
    """Gemma 3 has `layer_types`; a layer that moves takes its kind along."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        num_hidden_layers=3, hidden_size=16, intermediate_size=32, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=50, layer_types=kinds, sliding_window=4,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(place / "a")
    loaded = merged_model(place, stacked(("a", 1, 3), ("a", 0, 3)))
    assert loaded.config.layer_types == [*kinds[1:], *kinds]
    assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.filterwarnings("default")
def test_the_language_model_of_a_vision_language_model_grows_and_the_rest_stays(
    place: Place,
) -> None:
    from transformers import (
        AutoModelForImageTextToText,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = CLIPVisionConfig(hidden_size=16, image_size=8, patch_size=4, **layers)
    text = LlamaConfig(hidden_size=16, vocab_size=50, num_key_value_heads=2, **layers)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=49)
    )
    model.save_pretrained(place / "a")
    names = read_tensors(place / "a")
    sliced = stacked(("a", 0, 2), ("a", 1, 2))["slices"]
    document = {
        "merge_method": "passthrough",
        "modules": {"language_model": {"slices": sliced}},
        "keep": ["*vision_tower*", "*multi_modal_projector*", "lm_head.weight"],
    }
    document["keep"] = [p for p in document["keep"] if any(fnmatchcase(n, p) for n in names)]
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(located(document, place.path)))
    assert place.merge(path).rc == 0
    loaded, report = AutoModelForImageTextToText.from_pretrained(
        place / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.config.text_config.num_hidden_layers == 3
    assert loaded.config.vision_config.num_hidden_layers == 2
    assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


# --- a layer taken twice -------------------------------------------------------------------------


def test_a_repeated_layer_is_drawn_anew_and_the_same_on_every_run(place: Place) -> None:
    """Draws are keyed by the output's name of a tensor."""
    base = place.llamas(1, dtype=torch.float32)
    twice = [{"sources": [take("base", 0, 1), take("a", 0, 1)]}] * 2
    recipe = place / "recipe.yaml"
    knobs = {"weight": 1.0, "density": 0.5}
    document = {"merge_method": "dare_linear", "base_model": "base", "parameters": knobs}
    recipe.write_text(yaml.safe_dump(located({**document, "slices": twice}, place.path)))
    merged, again = place.merged(recipe), place.merged(recipe, "again", "--shard-size", "5kB")

    assert all(torch.equal(merged[name], again[name]) for name in merged)
    first, second = (merged[f"model.layers.{n}.mlp.up_proj.weight"] for n in range(2))
    moved = [tensor != base["model.layers.0.mlp.up_proj.weight"] for tensor in (first, second)]
    assert not torch.equal(*moved)
    assert torch.equal(first[moved[0] & moved[1]], second[moved[0] & moved[1]])
    assert config_of(place / "out")["num_hidden_layers"] == 2
    card = (place / "out" / "README.md").read_text()
    assert "| a |" in card
