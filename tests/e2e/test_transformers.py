"""transformers loads what is written, as it loads what it writes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Place, raw

CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}


def save_llama(path: Path, seed: int, *, tied: bool = False, dtype: str = "bfloat16") -> Any:
    """A small Llama of transformers' own, saved as shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(**CONFIG, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size="100KB")
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.filterwarnings("default")
def test_a_merged_llama_loads_and_generates(place: Place, *, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    models = [save_llama(place / name, seed, tied=tied) for seed, name in enumerate("ab")]
    recipe = place.recipe("linear", parameters={"weight": 1.0}, dtype="float32")
    merged = place.merged(recipe, "out", "--shard-size", "100kB")
    assert len(list((place / "out").glob("*.safetensors"))) > 2
    assert ("lm_head.weight" in merged) is not tied

    loaded, report = AutoModelForCausalLM.from_pretrained(
        place / "out", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.dtype is torch.float32
    assert loaded.config.tie_word_embeddings is tied
    expected = {n: (models[0].state_dict()[n].float() + t.float()) / 2
                for n, t in models[1].state_dict().items()}  # fmt: skip
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)
    tokens = loaded.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=6, do_sample=False)
    assert tokens.shape[1] > 3
    assert tokens.max() < CONFIG["vocab_size"]
    assert json.loads((place / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.filterwarnings("default")
def test_identical_models_merge_into_a_model_that_computes_the_same(place: Place) -> None:
    from transformers import AutoModelForCausalLM

    for name in ("base", "a", "b"):
        save_llama(place / name, 0)
    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype="auto")
    for method in ("ties", "dare_ties", "linear", "slerp"):
        knobs = {"t": 0.4} if method == "slerp" else {"weight": 0.5}
        place.merged(place.any_recipe(method, parameters=knobs), method)
        loaded = AutoModelForCausalLM.from_pretrained(place / method, dtype="auto")
        ours = loaded.state_dict()
        assert {n: raw(t) for n, t in ours.items()} == {
            n: raw(t) for n, t in model.state_dict().items()
        }
        prompt = torch.tensor([[1, 2, 3, 4]])
        assert torch.equal(loaded(prompt).logits, model(prompt).logits)
    side = {path.name for path in (place / "ties").iterdir()}
    assert {"config.json", "generation_config.json", "README.md", "raymerge.json"} <= side
