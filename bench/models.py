"""Llama-shaped checkpoints: a base and three fine-tunes, made once and then reused.

The base is N(0, 0.02) in bfloat16. A fine-tune is the base plus N(0, 2e-4), rounded to bfloat16
afterwards: near 0.02 neighbouring bfloat16 numbers lie 1.2e-4 apart, so deltas take few distinct
values and many entries tie at a threshold, as in real fine-tunes. Norm weights are drawn like the
rest: nobody runs these models.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import shards
from bench.shards import ITEM_BYTES, Shard, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BASE_STD = 0.02
DELTA_STD = 2e-4
NAMES = ("base", "finetune-1", "finetune-2", "finetune-3")
MAX_SHARD_BYTES = 1_000_000_000
BLOCK_ITEMS = 1 << 18
"""Drawn at once: 1 MiB in float32 stays in a core's cache."""
NUM_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The sizes a Llama config names."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = True
    """Whether there is no head besides the embedding."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors of one checkpoint."""
        return sum(map(shards.num_bytes, self.tensors()))

    def tensors(self) -> list[Tensor]:
        """Every tensor of the checkpoint, in model order."""
        layers = [t for i in range(self.layers) for t in self._layer(f"model.layers.{i}")]
        embedding = ("model.embed_tokens.weight", (self.vocab, self.hidden))
        head = [] if self.tied else [("lm_head.weight", (self.vocab, self.hidden))]
        return [embedding, *layers, ("model.norm.weight", (self.hidden,)), *head]

    def _layer(self, prefix: str) -> Iterator[Tensor]:
        kv_width = self.hidden // self.heads * self.kv_heads
        yield f"{prefix}.input_layernorm.weight", (self.hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (self.hidden, self.hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_width, self.hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_width, self.hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (self.hidden, self.hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (self.hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)

    def config(self) -> dict[str, Any]:
        """A config.json that transformers and both mergers accept."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }


LLAMA_1B = LlamaShape(
    hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocab=128_256
)
"""Llama-3.2-1B: 1.236 G parameters, 2.47 GB."""
LLAMA_150M = LlamaShape(
    hidden=1024, layers=8, heads=16, kv_heads=4, intermediate=4096, vocab=32_000
)
LLAMA_3M = LlamaShape(hidden=256, layers=2, heads=8, kv_heads=2, intermediate=1024, vocab=1000)
LLAMA_TINY = LlamaShape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=256)
"""90 thousand parameters, 0.2 MB: what is left is the start of the process."""
LLAMA_405B = LlamaShape(
    hidden=16_384,
    layers=126,
    heads=128,
    kv_heads=8,
    intermediate=53_248,
    vocab=128_256,
    tied=False,
)
"""Llama-3.1-405B, for plans of headers alone: 812 GB."""


def make_family(folder: Path, shape: LlamaShape) -> None:
    """Write the base and its fine-tunes under `folder`, unless they are all there already."""
    folders = [folder / name for name in NAMES]
    if all(map(shards.is_whole, folders)):
        return
    shutil.rmtree(folder, ignore_errors=True)
    layout = shards.split_into_shards(shape.tensors(), max_shard_bytes=MAX_SHARD_BYTES)
    for path in folders:
        data_starts = shards.write_headers(path, layout)
    for i, shard in enumerate(layout):
        _fill_shard([path / shard.name for path in folders], shard, i, data_starts[i])
    for path in folders:
        shards.write_index(path, layout, shape.config())


def make_headers(folder: Path, shape: LlamaShape) -> None:
    """Write a base and three fine-tunes that are headers and holes, unless they are there."""
    shards.write_holes([folder / name for name in NAMES], shape.tensors(), shape.config())


def _fill_shard(paths: list[Path], shard: Shard, shard_index: int, data_start: int) -> None:
    """Draw a shard of the base and of every fine-tune, block by block, on all threads."""
    num_items = shard.data_bytes // ITEM_BYTES
    files = [os.open(path, os.O_WRONLY) for path in paths]

    def fill_block(first: int) -> None:
        count = min(BLOCK_ITEMS, num_items - first)
        for file, items in zip(files, _draw(shard_index, first, count), strict=True):
            os.pwrite(file, items.tobytes(), data_start + first * ITEM_BYTES)

    try:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(fill_block, range(0, num_items, BLOCK_ITEMS)))
    finally:
        for file in files:
            os.close(file)


def _draw(shard_index: int, first: int, count: int) -> Iterator[NDArray[np.uint16]]:
    """One block of the base, then of each fine-tune: a function of the block, not of the thread."""
    rng = np.random.Generator(np.random.SFC64([shard_index, first]))
    base = round_to_bfloat16(rng.standard_normal(count, np.float32) * np.float32(BASE_STD))
    yield base
    wide = (base.astype(np.uint32) << 16).view(np.float32)
    for _ in NAMES[1:]:
        delta = rng.standard_normal(count, np.float32) * np.float32(DELTA_STD)
        yield round_to_bfloat16(wide + delta)


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even. Finite values only."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
