"""Which side of the layers a tensor outside them stands on, told by its name.

Slices take what stands before the layers from the sources of the first slice and what stands after
them from those of the last. There is no table of architectures: input embeddings, and what is
applied to them before the first layer, have names that say so, and all else is norm or head.
"""

from __future__ import annotations

_ANYWHERE = "embed"
"""In embed_tokens, tok_embeddings, word_embeddings_layernorm, patch_embed, pos_embed."""
_BEFORE = (
    "emb_",
    "per_layer",  # Gemma 3n
    "wte",
    "wpe",
    "shared",  # T5's embedding
    "pos_emb",
    "cls_token",
    "class_token",
    "mask_token",
    "dist_token",
    "register_tokens",
    "conv1",  # Whisper
    "conv2",
    "project_in",  # OPT-350m
    "pre_layrnorm",  # CLIP, spelt so
    "pre_layernorm",
    "ln_pre",
    "layernorm_pre",
)
_AFTER = ("embed_out", "unembed", "lm_head", "output_embed")
"""Heads whose names speak of an embedding."""
_FINAL_NORM = "embedding_norm"
"""What LFM2 calls the norm behind its last layer; the one of a vision tower is before the first."""


def stands_before(name: str) -> bool:
    """Whether a tensor outside the layers is used before them."""
    text = name.lower()
    if any(word in text for word in _AFTER):
        return False
    components = text.split(".")
    if _FINAL_NORM in components and not any("vision" in part for part in components):
        return False
    return _ANYWHERE in text or any(part.startswith(_BEFORE) for part in components)
