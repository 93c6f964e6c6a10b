"""Models of many families whose tokens have other ids: each tensor with a row per token follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Place
from tests.vocabularies import completed, size, tokenizer, write_tokenizer

TOKENIZERS = {
    "base": tokenizer(("ab", "cd"), ["</s>", "<q>"]),
    # As many tokens, in another order.
    "b": tokenizer(("cd", "ab"), ["<x>", "</s>"]),
}
HIDDEN = 8
BERT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
SIDES = {
    "d_model": HIDDEN,
    **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 8 for side in ("encoder", "decoder")},
}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)

Make = Callable[[Any, int], Any]
FAMILIES: dict[str, tuple[Make, dict[str, int]]] = {
    "distilbert": (
        lambda t, v: t.DistilBertForMaskedLM(
            t.DistilBertConfig(
                dim=HIDDEN, hidden_dim=8, n_layers=1, n_heads=2, vocab_size=v,
                max_position_embeddings=16,
            )
        ),
        {"distilbert.embeddings.word_embeddings.weight": 0, "vocab_projector.bias": 0},
    ),
    "modernbert": (
        lambda t, v: t.ModernBertForMaskedLM(
            t.ModernBertConfig(**BERT, **SPECIAL, cls_token_id=0, sep_token_id=0, vocab_size=v)
        ),
        {"model.embeddings.tok_embeddings.weight": 0, "decoder.bias": 0},
    ),
    "bert": (
        lambda t, v: t.BertForMaskedLM(t.BertConfig(**BERT, vocab_size=v)),
        {"bert.embeddings.word_embeddings.weight": 0, "cls.predictions.bias": 0},
    ),
    "bert-untied": (
        lambda t, v: t.BertForMaskedLM(
            t.BertConfig(**BERT, vocab_size=v, tie_word_embeddings=False)
        ),
        {
            "bert.embeddings.word_embeddings.weight": 0,
            "cls.predictions.bias": 0,
            "cls.predictions.decoder.weight": 0,
            "cls.predictions.decoder.bias": 0,
        },
    ),
    "bart": (
        lambda t, v: t.BartForConditionalGeneration(
            t.BartConfig(**SIDES, vocab_size=v, max_position_embeddings=16)
        ),
        {"model.shared.weight": 0, "final_logits_bias": 1},
    ),
    "mamba": (
        lambda t, v: t.MambaForCausalLM(
            t.MambaConfig(hidden_size=HIDDEN, state_size=4, num_hidden_layers=1, vocab_size=v)
        ),
        {"backbone.embeddings.weight": 0},
    ),
    "clip": (
        lambda t, v: t.CLIPModel(
            t.CLIPConfig(
                text_config={**BERT, "vocab_size": v},
                vision_config={**BERT, "image_size": 16, "patch_size": 8},
                projection_dim=8,
            )
        ),
        {"text_model.embeddings.token_embedding.weight": 0},
    ),
}  # fmt: skip
"""A class of transformers, made small, and its tensors with a row per token by their axis."""


def write_family(place: Place, family: str) -> dict[str, dict[str, torch.Tensor]]:
    """A model per tokenizer; the tensors that it stores, by model."""
    import transformers
    from safetensors.torch import load_file

    written = {}
    for seed, (name, made) in enumerate(TOKENIZERS.items()):
        torch.manual_seed(seed)
        model = FAMILIES[family][0](transformers, size(made))
        with torch.no_grad():
            for one in (*model.parameters(), *model.buffers()):
                if one.is_floating_point():
                    one.add_(torch.randn_like(one) * 0.1)
        model.save_pretrained(place / name)
        write_tokenizer(place / name, made, eos_token="</s>")
        written[name] = load_file(place / name / "model.safetensors")
    return written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["base", "union"])
def test_every_row_of_a_token_is_merged_with_the_rows_of_that_token(
    tmp_path: Path, family: str, policy: str
) -> None:
    import transformers
    from tokenizers import Tokenizer

    place = Place(tmp_path)
    models = write_family(place, family)
    recipe = place.recipe(
        "linear", ("base", "b"), base="base", parameters={"weight": 1}, tokenizer_source=policy
    )
    merged = place.merged(recipe)

    ids = Tokenizer.from_file(str(place / "out" / "tokenizer.json")).get_vocab()
    assert ("<x>" in ids) is (policy == "union")
    for name, axis in FAMILIES[family][1].items():
        sources = []
        for source, made in TOKENIZERS.items():
            rows = models[source][name].movedim(axis, 0)
            sources.append({token: rows[row] for token, row in made.get_vocab().items()})
        first, second = completed([*ids], sources)
        out = merged[name].movedim(axis, 0)
        assert len(out) == len(ids)
        for token, row in ids.items():
            torch.testing.assert_close(out[row], (first[token] + second[token]) / 2)
    assert place.run("verify", place / "out").rc == 0
    shape = (len(ids), HIDDEN)
    loader = getattr(transformers, type(FAMILIES[family][0](transformers, 12)).__name__)
    model, report = loader.from_pretrained(place / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert tuple(getattr(model, "text_model", model).get_input_embeddings().weight.shape) == shape


def whisper(transformers: Any) -> Any:
    options = transformers.WhisperConfig(
        **SIDES, **SPECIAL, vocab_size=12, decoder_start_token_id=0, num_mel_bins=4,
        max_source_positions=10, max_target_positions=10,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(options)


@pytest.mark.parametrize("storing", [["a"], ["base", "a"]], ids=["one stores it", "all do"])
@pytest.mark.parametrize(
    ("make", "head", "embedding"),
    [
        (lambda t: FAMILIES["mamba"][0](t, 12), "lm_head.weight", "backbone.embeddings.weight"),
        (whisper, "proj_out.weight", "model.decoder.embed_tokens.weight"),
    ],
    ids=["mamba", "whisper"],
)
def test_a_tied_head_stays_its_embedding_whoever_stores_it(
    tmp_path: Path, make: Callable[[Any], Any], head: str, embedding: str, storing: list[str]
) -> None:
    """Drawn by its own name, a copy of it would come out as another tensor."""
    import transformers
    from safetensors.torch import load_file, save_file

    place = Place(tmp_path)
    for seed, name in enumerate(("base", "a")):
        torch.manual_seed(seed)
        made = make(transformers)
        made.save_pretrained(place / name)
        if name in storing:
            path = place / name / "model.safetensors"
            tensors = load_file(path)
            tensors[head] = tensors[embedding].clone()
            save_file(tensors, path, metadata={"format": "pt"})
    knobs = {"weight": 1.0, "density": 0.5}
    merged = place.merged(place.recipe("dare_ties", ("a",), base="base", parameters=knobs))

    assert head not in merged
    loaded, report = type(made).from_pretrained(place / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded.state_dict()[head], merged[embedding])


@pytest.mark.parametrize("family", ["mamba", "clip"])
def test_other_tokens_are_refused_without_a_policy(tmp_path: Path, family: str) -> None:
    place = Place(tmp_path)
    write_family(place, family)
    done = place.run("plan", place.recipe("linear", ("base", "b"), parameters={"weight": 1}))

    assert done.rc == 2, done.err
    assert "the sources differ in their vocabulary: base 12 tokens in 12 rows" in done.err
