"""Tiny models of several architectures, as transformers writes them: a base and its fine-tunes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
SMALLEST_DELTA, LARGEST_DELTA = 1e-2, 1e-1
"""A fine-tune's entries move by this much: well above float32's noise around 1."""


def _llava() -> PreTrainedConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        projection_dim=32,
    )
    text = LlamaConfig(**SIZES)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=95)


def _qwen_vl() -> PreTrainedConfig:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    turns = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = SIZES | {"rope_parameters": turns, "tie_word_embeddings": False}
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        **dict(zip(tokens, range(92, 96), strict=True)),
    )


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "phi": lambda: PhiConfig(**SIZES | {"num_key_value_heads": 4}),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=64, vocab_size=96),
    "llava": _llava,
    "qwen-vl": _qwen_vl,
}
SEEING = frozenset({"llava", "qwen-vl"})
"""Those of a model that sees."""


def write_family(folder: Path, architecture: str) -> Path:
    """Write `base` and the fine-tunes `a`, `b` and `c` under `folder`, in float32."""
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture]()
    kind = AutoModelForImageTextToText if architecture in SEEING else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32)
    _unlike_its_start(model)
    model.save_pretrained(folder / "base")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed, name in enumerate("abc", start=1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(start[key] + _moves(tensor, generator))
        model.tie_weights()
        model.save_pretrained(folder / name)
    return folder


def _unlike_its_start(model: torch.nn.Module) -> None:
    """Norms start at 1 and biases at 0, where much would go unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def _moves(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A task vector with no small entry and of both signs."""
    size = torch.rand(tensor.shape, generator=generator) * (LARGEST_DELTA - SMALLEST_DELTA)
    sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return (size + SMALLEST_DELTA) * sign
