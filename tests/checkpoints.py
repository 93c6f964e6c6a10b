"""Small checkpoints for tests: written by the real safetensors library, indexed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
}


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    max_shard_bytes: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write `tensors` as one `model.safetensors`, or with a limit as shards and an index.

    Returns the folder, which is made if there is none.
    """
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config, indent=2))
    stored = {name: torch.as_tensor(tensor).contiguous() for name, tensor in tensors.items()}
    if max_shard_bytes is None:
        save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
        return path
    groups = list(_group(stored, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        name = f"model-{i:05}-of-{len(groups):05}.safetensors"
        save_file(group, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, name)
    write_index(path, weight_map, total_size=sum(t.nbytes for t in stored.values()))
    return path


def write_index(path: Path, weight_map: Mapping[str, str], **metadata: int) -> None:
    """Write `model.safetensors.index.json`, true or not."""
    index = {"metadata": metadata, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def llama_config(
    tensors: Mapping[str, Tensor], *, tied: bool = False, **changes: Any
) -> dict[str, Any]:
    """The config.json that goes with `tiny_llama_tensors`."""
    embedding = tensors["model.embed_tokens.weight"]
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    return {
        **LLAMA_CONFIG,
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": 2 * embedding.shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "dtype": str(embedding.dtype).removeprefix("torch."),
        **changes,
    }


def tiny_llama_tensors(
    seed: int,
    *,
    layers: int = 2,
    hidden: int = 16,
    vocab: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
) -> dict[str, Tensor]:
    """Tensors with a Llama's names and shapes; without a head if tied. Equal seeds, equal bytes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).to(dtype)

    tensors = {"model.embed_tokens.weight": draw(vocab, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = draw(hidden, hidden)
        tensors[f"{layer}.mlp.gate_proj.weight"] = draw(2 * hidden, hidden)
        tensors[f"{layer}.mlp.up_proj.weight"] = draw(2 * hidden, hidden)
        tensors[f"{layer}.mlp.down_proj.weight"] = draw(hidden, 2 * hidden)
        tensors[f"{layer}.input_layernorm.weight"] = 1 + draw(hidden)
        tensors[f"{layer}.post_attention_layernorm.weight"] = 1 + draw(hidden)
    tensors["model.norm.weight"] = 1 + draw(hidden)
    if not tied:
        tensors["lm_head.weight"] = draw(vocab, hidden)
    return tensors


def fine_tune(tensors: Mapping[str, Tensor], seed: int, scale: float = 0.01) -> dict[str, Tensor]:
    """The same model some training later: Gaussian noise of `scale` on every floating tensor."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * scale
        tuned[name] = (tensor + noise).to(tensor.dtype) if tensor.is_floating_point() else tensor
    return tuned


def _group(tensors: Mapping[str, Tensor], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    group_bytes = 0
    for name, tensor in tensors.items():
        if group and group_bytes + tensor.nbytes > max_shard_bytes:
            yield group
            group, group_bytes = {}, 0
        group[name] = tensor
        group_bytes += tensor.nbytes
    if group:
        yield group
