"""Before the layers or after them, by name alone."""

from __future__ import annotations

import pytest

from raymerge.plan.ends import stands_before

BEFORE = """
model.embed_tokens.weight
transformer.wte.weight
wpe.weight
model.tok_embeddings.weight
bert.embeddings.LayerNorm.bias
transformer.word_embeddings_layernorm.weight
gpt_neox.embed_in.weight
shared.weight
model.decoder.embed_positions.weight
model.decoder.project_in.weight
vit.embeddings.cls_token
model.visual.patch_embed.proj.weight
vision_model.pre_layrnorm.weight
model.per_layer_model_projection.weight
model.vision_tower.embedding_norm.weight
model.audio_tower.soft_embedding_norm.weight
"""
AFTER = """
model.norm.weight
lm_head.weight
lm_head.bias
transformer.ln_f.bias
output.weight
gpt_neox.embed_out.weight
gpt_neox.final_layer_norm.weight
model.decoder.project_out.weight
cls.predictions.decoder.weight
bert.pooler.dense.weight
score.weight
unembed.weight
model.visual.merger.weight
model.embedding_norm.weight
model.language_model.embedding_norm.weight
"""


@pytest.mark.parametrize("name", BEFORE.split())
def test_an_embedding_stands_before_the_layers(name: str) -> None:
    assert stands_before(name)


@pytest.mark.parametrize("name", AFTER.split())
def test_a_norm_or_a_head_stands_after_them(name: str) -> None:
    assert not stands_before(name)
