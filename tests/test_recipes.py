"""Every example recipe loads, fits the JSON Schema, plans and merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import raymerge
from raymerge.methods import methods
from raymerge.recipe.schema import json_schema
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors, write_checkpoint

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)

FINE_TUNES = ("math", "code", "chat", "toxic", "math/run-1/final", "math/run-2/final")
"""What the recipes merge, beside models/base and models/old."""
LAYERS = 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/base, models/math and so on: small Llamas, sharded."""
    folder = tmp_path_factory.mktemp("recipes")
    base = tiny_llama_tensors(0, layers=LAYERS, dtype=torch.float32)
    write(folder, "base", base)
    for seed, name in enumerate(FINE_TUNES, start=1):
        write(folder, name, fine_tune(base, seed))
    # Early conversions of Llama stored what later ones compute.
    rotary = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.arange(4.0) for i in range(LAYERS)
    }
    write(folder, "old", {**fine_tune(base, 9), **rotary})
    return folder


def write(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    path = folder / "models" / name
    write_checkpoint(path, tensors, config=llama_config(tensors), max_shard_bytes=10_000)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_every_method_has_a_recipe_of_its_name() -> None:
    assert set(methods()) <= {path.stem for path in RECIPES}
    for path in RECIPES:
        if path.stem in methods():
            assert raymerge.load(path).method.name == path.stem


@each_recipe
def test_the_schema_accepts_it(recipe: Path) -> None:
    for document in yaml.safe_load_all(recipe.read_text()):
        jsonschema.Draft202012Validator(json_schema()).validate(document)


@each_recipe
def test_it_merges_and_verifies(
    recipe: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    planned = raymerge.plan(recipe, engine="local", device="cpu")
    result = raymerge.merge(recipe, tmp_path / "out", engine="local", device="cpu")

    found = raymerge.verify(tmp_path / "out")
    assert found.ok, found.problems
    assert found.checked_sha256
    assert result.digest == planned.digest
    assert result.tensors == found.tensors == len(planned.nodes)
    base = tensors_of(Path("models/base"))
    merged = tensors_of(tmp_path / "out")
    assert set(merged) == set(base)
    assert any(not torch.equal(merged[name], base[name]) for name in base)


@pytest.fixture
def merged(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], dict[str, Tensor]]:
    monkeypatch.chdir(models)

    def run(name: str) -> dict[str, Tensor]:
        out = tmp_path / name
        raymerge.merge(FOLDER / f"{name}.yaml", out, engine="local", device="cpu")
        return tensors_of(out)

    return run


def test_gradients_reach_from_one_model_to_the_other(
    merged: Callable[[str], dict[str, Tensor]],
) -> None:
    graded = merged("gradients-and-filters")
    math, code = tensors_of(Path("models/math")), tensors_of(Path("models/code"))
    layer = "model.layers.{}.{}_proj.weight".format
    first, last = layer(0, "self_attn.q"), layer(LAYERS - 1, "self_attn.q")
    assert torch.equal(graded[first], math[first])
    assert torch.equal(graded[last], code[last])
    first, last = layer(0, "mlp.up"), layer(LAYERS - 1, "mlp.up")
    assert torch.equal(graded[first], code[first])
    assert torch.equal(graded[last], math[last])


def test_what_is_kept_is_the_bases(merged: Callable[[str], dict[str, Tensor]]) -> None:
    kept, base = merged("keep-and-drop"), tensors_of(Path("models/base"))
    same = {name for name in base if torch.equal(kept[name], base[name])}
    assert same == {name for name in base if "norm" in name or "embed" in name or "head" in name}


def test_passthrough_narrows(merged: Callable[[str], dict[str, Tensor]]) -> None:
    halved, math = merged("passthrough"), tensors_of(Path("models/math"))
    assert all(torch.equal(halved[name], math[name].bfloat16()) for name in math)


def test_a_recipe_of_mergekits_lists_what_has_no_effect() -> None:
    notes = raymerge.load(FOLDER / "from-mergekit.yaml").no_effect
    words = [note.split(": ", 1)[1].split()[0] for note in notes]
    assert sorted(words) == ["density", "epsilon", "int8_mask", "name", "weight"]


def test_only_the_papers_trim_is_surveyed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    plans = [raymerge.plan(path, engine="local", device="cpu") for path in RECIPES]
    surveyed = [Path(plan.recipe.path).stem for plan in plans if plan.surveyed]
    assert surveyed == ["ties-paper"]
