"""Every example recipe loads, fits the JSON Schema, plans and merges."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

import raymerge
from raymerge.methods import methods
from raymerge.recipe.schema import json_schema
from tests.adapters import factors, modules_of, write_adapter
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors, write_checkpoint
from tests.vocabularies import by_token, tokenizer, write_tokenizer

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)

FINE_TUNES = ("math", "code", "chat", "toxic", "math/run-1/final", "math/run-2/final")
"""What the recipes merge, beside models/base and models/old."""
LAYERS = 5
TOOLS = ["<tool>", "<think>"]
"""Tokens that models/tools adds to those of models/base."""


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
    for seed, name in enumerate(("math", "code")):
        drawn = factors(modules_of(base, "q_proj", "up_proj"), seed=seed)
        write_adapter(folder / "adapters" / name, drawn)
    seeing = vision_language(base)
    for seed, name in enumerate(("vlm", "vlm-math", "vlm-chart"), start=20):
        tensors = seeing if name == "vlm" else fine_tune(seeing, seed)
        write_checkpoint(folder / "models" / name, tensors, config=VLM_CONFIG)
    # Their embeddings have rows to spare.
    for name, added in {"base": [], "tools": TOOLS, "talk": ["<user>", "<think>"]}.items():
        if added:
            write(folder, name, fine_tune(base, 10 + len(name)))
        write_tokenizer(folder / "models" / name, tokenizer(added=["</s>", *added]))
    return folder


VLM_CONFIG = {
    "architectures": ["TinyVisionForConditionalGeneration"],
    "text_config": {"num_hidden_layers": LAYERS, "vocab_size": 32, "hidden_size": 16},
    "vision_config": {"depth": 2},
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def vision_language(language: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of a vision-language model as transformers writes them."""
    seeing = {
        name.replace("model.", "model.language_model."): tensor for name, tensor in language.items()
    }
    for block in range(2):
        seeing[f"model.visual.blocks.{block}.attn.qkv.weight"] = torch.full((12, 4), block + 1.0)
    seeing["model.visual.patch_embed.proj.weight"] = torch.ones(4, 3)
    return seeing


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
    donor = tensors_of(Path(planned.donor.location))
    merged = tensors_of(tmp_path / "out")
    assert {*map(without_number, merged)} == {*map(without_number, donor)}
    assert planned.stacks or set(merged) == set(donor)
    shared = merged.keys() & donor.keys()
    assert any(not torch.equal(merged[name], donor[name]) for name in shared)


def without_number(name: str) -> str:
    return re.sub(r"\.\d+\.", ".", name)


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


def test_the_union_knows_every_token(
    merged: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    embedding = merged("tokenizer_union")["model.embed_tokens.weight"]
    made = Tokenizer.from_file(str(tmp_path / "tokenizer_union" / "tokenizer.json"))
    rows = by_token(embedding, made)

    added = ["<tool>", "<think>", "<user>", "<pause>", "<human>"]
    assert [made.token_to_id(token) for token in added] == list(range(11, 16))
    assert embedding.shape[0] == 16
    tools = tensors_of(Path("models/tools"))["model.embed_tokens.weight"]
    talk = tensors_of(Path("models/talk"))["model.embed_tokens.weight"]
    torch.testing.assert_close(rows["<think>"], tools[12])
    torch.testing.assert_close(rows["<user>"], talk[11])
    torch.testing.assert_close(rows["<human>"], talk[11])
    assert not rows["<pause>"].any()


def test_a_template_that_is_written_out_is_the_outputs(
    merged: Callable[[str], dict[str, Tensor]], tmp_path: Path
) -> None:
    merged("chat_template")
    text = (tmp_path / "chat_template" / "chat_template.jinja").read_text()
    assert text.startswith("{%- for message in messages %}\n{{- '<' + message['role']")


def test_passthrough_narrows(merged: Callable[[str], dict[str, Tensor]]) -> None:
    halved, math = merged("passthrough"), tensors_of(Path("models/math"))
    assert all(torch.equal(halved[name], math[name].bfloat16()) for name in math)


def test_a_recipe_of_mergekits_lists_what_has_no_effect() -> None:
    notes = raymerge.load(FOLDER / "from-mergekit.yaml").no_effect
    words = [note.split(": ", 1)[1].split()[0] for note in notes]
    assert sorted(words) == ["density", "epsilon", "int8_mask", "name", "weight"]


def test_adapters_change_what_they_hold_and_models_the_rest(
    merged: Callable[[str], dict[str, Tensor]],
) -> None:
    mixed, base = merged("lora"), tensors_of(Path("models/base"))
    plan = raymerge.plan(FOLDER / "lora.yaml", engine="local", device="cpu")
    labels = ["base", "math", "code", "chat+code", "math adapter", "chat+code adapter"]
    assert [source.label for source in plan.sources] == labels
    assert not any(torch.equal(mixed[name], base[name]) for name in base)


def test_only_the_papers_trim_is_surveyed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    plans = [raymerge.plan(path, engine="local", device="cpu") for path in RECIPES]
    surveyed = [Path(plan.recipe.path).stem for plan in plans if plan.surveyed]
    assert surveyed == ["ties-paper"]


def test_a_stack_takes_each_layer_from_where_the_recipe_says(
    merged: Callable[[str], dict[str, Tensor]],
) -> None:
    stacked = merged("passthrough_stack")
    math, code = tensors_of(Path("models/math")), tensors_of(Path("models/code"))
    up = "model.layers.{}.mlp.up_proj.weight".format
    taken = [(math, 0), (math, 1), (math, 2), (code, 1), (code, 2), (code, 3), (math, 3), (math, 4)]
    for layer, (source, number) in enumerate(taken):
        assert torch.equal(stacked[up(layer)], source[up(number)])
    assert up(len(taken)) not in stacked
    down = "model.layers.{}.mlp.down_proj.weight".format
    assert torch.equal(stacked[down(7)], math[down(4)] * 0.5)
    assert torch.equal(stacked["lm_head.weight"], math["lm_head.weight"])


def test_slices_have_knobs_of_their_own(merged: Callable[[str], dict[str, Tensor]]) -> None:
    sliced = merged("slices")
    base, math, code = (tensors_of(Path("models", name)) for name in ("base", "math", "code"))

    def expect(name: str, *weights: float, scale: float) -> None:
        deltas = [m[name] - base[name] for m in (math, code)]
        mixed = sum((w * d for w, d in zip(weights, deltas, strict=False)), torch.zeros(()))
        torch.testing.assert_close(sliced[name], base[name] + scale * mixed, rtol=0, atol=1e-7)

    up = "model.layers.{}.mlp.up_proj.weight".format
    expect("model.embed_tokens.weight", 0.5, scale=1)
    expect(up(1), 0.5, scale=1)
    expect(up(2), 1, 0.5, scale=0.8)
    expect(up(3), 0.6, 0.5, scale=0.8)
    expect(up(4), 0.2, 0.5, scale=0.8)
    expect("model.norm.weight", 1, 0.5, scale=0.8)


def test_what_no_module_has_is_the_bases(merged: Callable[[str], dict[str, Tensor]]) -> None:
    seeing, base = merged("modules"), tensors_of(Path("models/vlm"))
    same = {name for name in base if torch.equal(seeing[name], base[name])}
    assert same == {name for name in base if "language_model" not in name}
