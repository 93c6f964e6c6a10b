from __future__ import annotations

from typing import Any

import pytest

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.ties import (
    Tie,
    TiePolicy,
    decide_tie,
    find_embedding,
    find_tie,
    tied_by_config,
)
from raymerge.errors import PlanError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CAUSAL = {"architectures": ["LlamaForCausalLM"]}
SILENT: dict[str, Any] = {}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def catalog(label: str, config: dict[str, Any], *names: str, **shapes: tuple[int, ...]) -> Catalog:
    tensors = {
        name: TensorEntry(name, DType.BF16, shapes.get(name, (32, 16)), "f", 0, 1024)
        for name in names or (EMBEDDING, HEAD)
    }
    return Catalog(
        label=label,
        location=label,
        tensors=tensors,
        pins={},
        config=config,
        side_files=(),
    )


def holds(label: str, config: dict[str, Any]) -> Catalog:
    return catalog(label, config, EMBEDDING, HEAD)


def lacks(label: str, config: dict[str, Any]) -> Catalog:
    return catalog(label, config, EMBEDDING)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((EMBEDDING, HEAD), Tie(HEAD, EMBEDDING)),
        (("tok_embeddings.weight", "output.weight"), Tie("output.weight", "tok_embeddings.weight")),
        (("gpt_neox.embed_in.weight", "embed_out.weight"), None),
        (("transformer.wte.weight", HEAD), Tie(HEAD, "transformer.wte.weight")),
        (("shared.weight", "decoder.embed_tokens.weight", HEAD), Tie(HEAD, "shared.weight")),
        (
            (
                "thinker.lm_head.weight",
                "talker.embed_tokens.weight",
                "thinker.m.embed_tokens.weight",
            ),
            Tie("thinker.lm_head.weight", "thinker.m.embed_tokens.weight"),
        ),
        (
            ("model.layers.61.embed_tokens.weight", EMBEDDING, HEAD, "model.mtp.lm_head.weight"),
            Tie(HEAD, EMBEDDING),
        ),
        (
            ("model.decoder.embed_tokens.weight", "proj_out.weight"),
            Tie("proj_out.weight", "model.decoder.embed_tokens.weight"),
        ),
        (("backbone.embeddings.weight", HEAD), Tie(HEAD, "backbone.embeddings.weight")),
        (
            ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
            Tie("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ),
        (("vq.embeddings.weight", EMBEDDING, HEAD), Tie(HEAD, EMBEDDING)),
        ((EMBEDDING, "model.layers.61.shared_head.head.weight"), None),
        (("rwkv.embeddings.weight", "head.weight"), Tie("head.weight", "rwkv.embeddings.weight")),
        ((EMBEDDING,), None),
        ((HEAD,), None),
        ((EMBEDDING, "encoder.my_output.weight"), None),
    ],
)
def test_the_head_and_its_embedding_are_found_by_name_and_shape(
    names: tuple[str, ...],
    expected: Tie | None,
) -> None:
    # NeoX pads its head apart from its embedding; the shapes differ, and nothing can be tied.
    assert find_tie(catalog("a", {}, *names, **{"embed_out.weight": (40, 16)})) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("backbone.embeddings.weight",), "backbone.embeddings.weight"),
        (("text_model.token_embedding.weight",), "text_model.token_embedding.weight"),
        (("embeddings.weight", "model.decoder.embed_tokens.weight"),
         "model.decoder.embed_tokens.weight"),
        (("model.position_embeddings.weight", "vision.position_embedding.weight"), None),
    ],
)  # fmt: skip
def test_a_less_clear_name_counts_only_where_no_other_embedding_is(
    names: tuple[str, ...], expected: str | None
) -> None:
    assert find_embedding(catalog("a", {}, *names)) == expected


@pytest.mark.parametrize(
    ("head", "embedding"),
    [
        (HEAD, "backbone.embeddings.weight"),
        ("proj_out.weight", "model.decoder.embed_tokens.weight"),
    ],
)
def test_a_tied_head_of_mamba_or_whisper_is_written_nowhere(head: str, embedding: str) -> None:
    both = [catalog("a", TIED, embedding, head), catalog("b", TIED, embedding)]
    for sources, claiming in ((both, ("a",)), (both[:1] * 2, ("a", "a"))):
        policy = decide_tie(sources)
        assert policy is not None
        assert (policy.tied, policy.must_equal) == (True, claiming)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        (TIED, True),
        (UNTIED, False),
        ({"tie_word_embeddings": None}, None),
        ({"text_config": TIED}, True),
        ({"tie_word_embeddings": False, "text_config": TIED}, False),
        ({"thinker_config": {"text_config": UNTIED}}, False),
        ({"vision_config": TIED}, None),
        ({"text_config": None}, None),
    ],
)
def test_a_config_says_tied_at_the_top_or_in_its_language_model(
    config: dict[str, Any],
    *,
    expected: bool | None,
) -> None:
    assert tied_by_config(config) is expected


@pytest.mark.parametrize(
    ("sources", "tied", "stand_ins", "must_equal"),
    [
        pytest.param([holds("a", UNTIED), holds("b", SILENT)], False, (), (), id="all untied"),
        pytest.param([holds("a", UNTIED), lacks("b", TIED)], False, ("b",), (), id="one ties"),
        pytest.param([lacks("a", SILENT), holds("b", SILENT)], False, ("a",), (), id="no config"),
        pytest.param([holds("a", TIED), lacks("b", TIED)], True, (), ("a",), id="kept a copy"),
        pytest.param([holds("a", TIED), holds("b", TIED)], True, (), ("a", "b"), id="both did"),
        pytest.param(
            [holds("a", TIED), lacks("b", TIED), holds("c", UNTIED)],
            *(False, ("b",), ("a",)),
            id="all three kinds",
        ),
        pytest.param(
            [holds("a", UNTIED), catalog("b", UNTIED, "vision.proj.weight")],
            *(False, (), ()),
            id="neither tensor, no part in it",
        ),
    ],
)
def test_the_output_is_untied_as_soon_as_one_source_is(
    sources: list[Catalog],
    *,
    tied: bool,
    stand_ins: tuple[str, ...],
    must_equal: tuple[str, ...],
) -> None:
    assert decide_tie(sources) == TiePolicy(
        head=HEAD,
        embedding=EMBEDDING,
        tied=tied,
        stand_ins=stand_ins,
        must_equal=must_equal,
    )


@pytest.mark.parametrize(
    "sources",
    [
        [],
        [lacks("a", TIED), lacks("b", SILENT)],
        # An embedding model has no head to miss, whatever its config inherited.
        [lacks("a", {**UNTIED, "architectures": ["MistralModel"]})],
        [catalog("a", {**UNTIED, **CAUSAL}, "model.norm.weight")],
        [
            catalog(
                "a",
                {**UNTIED, **CAUSAL},
                "rwkv.embeddings.weight",
                "head.weight",
                **{"head.weight": (40, 16)},
            )
        ],
        # A head of another shape is there and cannot be tied.
        [catalog("a", {**UNTIED, **CAUSAL}, EMBEDDING, HEAD, **{HEAD: (40, 16)})],
    ],
)
def test_where_no_head_could_be_tied_there_is_nothing_to_decide(sources: list[Catalog]) -> None:
    assert decide_tie(sources) is None


@pytest.mark.parametrize(
    "sources",
    [
        [lacks("broken", UNTIED), holds("b", UNTIED)],
        [holds("b", TIED), lacks("broken", {"text_config": UNTIED})],
        [lacks("broken", {**UNTIED, **CAUSAL})],
    ],
)
def test_a_source_that_claims_a_head_and_has_none_is_refused(sources: list[Catalog]) -> None:
    with pytest.raises(PlanError, match="is not in its files") as caught:
        decide_tie(sources)

    assert caught.value.source == "broken"
