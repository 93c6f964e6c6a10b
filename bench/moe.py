"""A synthetic 671B mixture of experts, for plans: headers and index are real, data are holes.

Names and sizes are DeepSeek-V3's, except that each layer has 512 experts of width 1024 instead of
256 of width 2048: the parameters stay and the tensors double, to the 90,000 its published
checkpoint reaches by storing a scale beside every fp8 weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench import shards
from bench.models import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.shards import Tensor

MAX_SHARD_BYTES = 8_300_000_000
"""Gives some 160 shards, as published."""

HIDDEN = 7168
VOCAB = 129_280
HEADS = 128
Q_RANK, KV_RANK = 1536, 512
NOPE, ROPE, VALUE = 128, 64, 128
"""Widths of a head: without position, with position, of its values."""
DENSE_LAYERS = 3
DENSE_WIDTH = 18_432
EXPERT_WIDTH = 1024
SHARED_WIDTH = 2048


@dataclass(frozen=True, slots=True)
class MoeShape:
    """How many layers, and experts in each layer after the first three."""

    layers: int
    experts: int

    def tensors(self) -> list[Tensor]:
        """Every tensor, in model order."""
        layers = [t for i in range(self.layers) for t in self._layer(i)]
        embedding = ("model.embed_tokens.weight", (VOCAB, HIDDEN))
        head = ("lm_head.weight", (VOCAB, HIDDEN))
        return [embedding, *layers, ("model.norm.weight", (HIDDEN,)), head]

    def _layer(self, index: int) -> Iterator[Tensor]:
        prefix = f"model.layers.{index}"
        yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
        yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)
        yield from _attention(f"{prefix}.self_attn")
        if index < DENSE_LAYERS:
            yield from _mlp(f"{prefix}.mlp", DENSE_WIDTH)
            return
        yield f"{prefix}.mlp.gate.weight", (self.experts, HIDDEN)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (self.experts,)
        yield from _mlp(f"{prefix}.mlp.shared_experts", SHARED_WIDTH)
        for expert in range(self.experts):
            yield from _mlp(f"{prefix}.mlp.experts.{expert}", EXPERT_WIDTH)

    def config(self) -> dict[str, Any]:
        """The part of DeepSeek-V3's config that says what the tensors are."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_size": HIDDEN,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "q_lora_rank": Q_RANK,
            "kv_lora_rank": KV_RANK,
            "qk_nope_head_dim": NOPE,
            "qk_rope_head_dim": ROPE,
            "v_head_dim": VALUE,
            "first_k_dense_replace": DENSE_LAYERS,
            "intermediate_size": DENSE_WIDTH,
            "moe_intermediate_size": EXPERT_WIDTH,
            "n_routed_experts": self.experts,
            "n_shared_experts": SHARED_WIDTH // EXPERT_WIDTH,
            "vocab_size": VOCAB,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


def _attention(prefix: str) -> Iterator[Tensor]:
    yield f"{prefix}.q_a_proj.weight", (Q_RANK, HIDDEN)
    yield f"{prefix}.q_a_layernorm.weight", (Q_RANK,)
    yield f"{prefix}.q_b_proj.weight", (HEADS * (NOPE + ROPE), Q_RANK)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (KV_RANK + ROPE, HIDDEN)
    yield f"{prefix}.kv_a_layernorm.weight", (KV_RANK,)
    yield f"{prefix}.kv_b_proj.weight", (HEADS * (NOPE + VALUE), KV_RANK)
    yield f"{prefix}.o_proj.weight", (HIDDEN, HEADS * VALUE)


def _mlp(prefix: str, width: int) -> Iterator[Tensor]:
    yield f"{prefix}.gate_proj.weight", (width, HIDDEN)
    yield f"{prefix}.up_proj.weight", (width, HIDDEN)
    yield f"{prefix}.down_proj.weight", (HIDDEN, width)


MOE_671B = MoeShape(layers=61, experts=512)
MOE_SMALL = MoeShape(layers=5, experts=8)


def make_family(folder: Path, shape: MoeShape) -> None:
    """Write the headers of a base and three fine-tunes, unless they are all there already."""
    shards.write_holes(
        [folder / name for name in NAMES],
        shape.tensors(),
        shape.config(),
        max_shard_bytes=MAX_SHARD_BYTES,
    )
