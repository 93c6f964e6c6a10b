"""What a plan makes of vocabularies: refused, left alone, or put in one order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tokenizers import Tokenizer

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.ties import vocabulary_tensors
from raymerge.errors import PlanError, SourceError
from raymerge.plan.build import Plan, PlanOptions, build
from raymerge.plan.explain import explain
from raymerge.plan.graph import Read
from raymerge.plan.remapped import Remapped
from raymerge.recipe import loads
from raymerge.tokenizer.files import TokenizerFiles
from tests.plans import EMBEDDING, GIB, HEAD, MODEL, UP, Tensors, catalog, recipe, without
from tests.vocabularies import tokenizer

BASE = tokenizer(added=["</s>"])
LONGER = tokenizer(added=["</s>", "<x>"])
SWAPPED = tokenizer(("cd", "ab"), ["</s>"])
BIAS = "lm_head.bias"


def model(rows: int, **extra: tuple[DType, tuple[int, ...]]) -> Tensors:
    return {
        **MODEL,
        EMBEDDING: (DType.BF16, (rows, 16)),
        HEAD: (DType.BF16, (rows, 16)),
        **extra,
    }


def files(label: str, made: Tokenizer | bytes | None) -> TokenizerFiles:
    if made is None:
        return TokenizerFiles(label, {})
    raw = made if isinstance(made, bytes) else made.to_str().encode()
    return TokenizerFiles(label, {"tokenizer.json": raw})


def planned(
    sources: Mapping[str, tuple[Tensors, Tokenizer | bytes | None]],
    method: str = "linear",
    base: str | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    **top: Any,
) -> Plan:
    merge = recipe(method, *(name for name in sources if name != base), base=base, **top)
    catalogs: dict[str, Catalog] = {
        name: catalog(name, tensors, config=(configs or {}).get(name))
        for name, (tensors, _) in sources.items()
    }
    return build(
        merge,
        [catalogs[source.label] for source in merge.all_sources],
        PlanOptions(memory_bytes=4 * GIB, threads=2),
        tokenizer_files={name: files(name, made) for name, (_, made) in sources.items()},
    )


def inputs(plan: Plan, name: str) -> tuple[object, ...]:
    return next(node.inputs for node in plan.nodes if node.slot.name == name)


# --- without a policy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "counts", "first"),
    [
        (LONGER, "a 11 tokens in 32 rows, b 12 tokens in 32 rows",
         "11 is no token in a and '<x>' in b. "),
        (SWAPPED, "a 11 tokens in 32 rows, b 11 tokens in 32 rows",
         "8 is 'ab' in a and 'cd' in b, 9 is 'cd' in a and 'ab' in b. "),
    ],
    ids=["longer", "swapped"],
)  # fmt: skip
def test_other_tokens_in_as_many_rows_are_refused(
    other: Tokenizer, counts: str, first: str
) -> None:
    with pytest.raises(PlanError) as caught:
        planned({"a": (MODEL, BASE), "b": (MODEL, other)})

    message = caught.value.message
    assert message.startswith(f"the sources differ in their vocabulary: {counts}. First to differ:")
    assert first in message
    assert "Write `tokenizer_source: base`" in message
    assert "`tokenizer_source: union`" in message


def test_other_numbers_of_rows_are_refused_with_them() -> None:
    message = r"a 32 rows, b 40 rows\. Rows of different tokens cannot"
    for tokens in ((None, None), (BASE, BASE), (BASE, None)):
        with pytest.raises(PlanError, match=message):
            planned({"a": (MODEL, tokens[0]), "b": (model(40), tokens[1])})


def test_a_source_without_tokenizer_files_is_held_to_its_rows() -> None:
    planned({"a": (MODEL, BASE), "b": (MODEL, None), "c": (MODEL, BASE)})
    with pytest.raises(PlanError, match=r"a 11 tokens in 32 rows, c 12 tokens in 32 rows, b 32 ro"):
        planned({"a": (MODEL, BASE), "c": (MODEL, LONGER), "b": (MODEL, None)})


def test_tokens_without_a_row_make_no_difference() -> None:
    planned({"a": (model(11), BASE), "b": (model(11), LONGER)})


def test_files_that_cannot_be_read_are_refused_unless_they_are_equal() -> None:
    planned({"a": (MODEL, b"{}"), "b": (MODEL, b"{}")})
    with pytest.raises(SourceError, match=r"b: tokenizer.json cannot be read"):
        planned({"a": (MODEL, BASE), "b": (MODEL, b"{}")})


@pytest.mark.parametrize("key", ["keep", "drop"])
def test_what_is_not_merged_may_differ(key: str) -> None:
    made = planned(
        {"a": (MODEL, BASE), "b": (model(40), LONGER)}, **dict[str, Any]({key: [EMBEDDING, HEAD]})
    )

    assert made.tokenizer is None


def stacked(
    *taken: str, sources: Mapping[str, tuple[Tensors, Tokenizer | bytes]], **top: Any
) -> Plan:
    """Slices of two layers each, averages of the sources that they name."""
    slices = [
        {"sources": [{"model": name, "layer_range": [0, 2]} for name in names.split()]}
        for names in taken
    ]
    document = {"merge_method": "linear", "parameters": {"weight": 1}, "slices": slices, **top}
    merge = loads(json.dumps(document), path="r.yaml")
    return build(
        merge,
        [catalog(source.label, sources[source.label][0]) for source in merge.all_sources],
        PlanOptions(memory_bytes=4 * GIB, threads=2),
        tokenizer_files={name: files(name, made) for name, (_, made) in sources.items()},
    )


def test_slices_in_the_middle_give_no_rows_and_may_have_other_tokens() -> None:
    for other in ((MODEL, SWAPPED), (MODEL, LONGER), (model(40), LONGER), (model(40), b"{}")):
        sources = {"a": (MODEL, BASE), "b": other, "c": (MODEL, BASE)}
        made = stacked("a", "b", "c", sources=sources)
        assert made.tokenizer is None
        assert {one.source for one in inputs(made, EMBEDDING)} == {0}  # type: ignore[attr-defined]
        stacked("a", "a b", "c a", sources=sources)


@pytest.mark.parametrize(
    ("taken", "top"),
    [
        (("b", "a", "a"), {}),
        (("a", "a", "b"), {}),
        (("a b", "a"), {}),
        (("a", "a b"), {}),
        (("a", "a", "b"), {"keep": [EMBEDDING]}),
        # Nobody merges the base's rows, but its tokenizer goes with them.
        (("a", "a", "a"), {"base_model": "b"}),
    ],
)
def test_the_first_and_the_last_slice_give_rows_and_the_donor_the_tokens(
    taken: tuple[str, ...], top: dict[str, Any]
) -> None:
    sources = {"a": (MODEL, BASE), "b": (MODEL, SWAPPED)}
    with pytest.raises(PlanError, match="the sources differ in their vocabulary"):
        stacked(*taken, sources=sources, **top)
    stacked(*taken, sources=sources, **{**top, "keep": [EMBEDDING, HEAD]})


def test_an_embedding_of_another_name_is_seen_by_what_the_config_says() -> None:
    name = "backbone.tokens.weight"
    odd: Tensors = {**without(MODEL, EMBEDDING, HEAD), name: (DType.BF16, (32, 16))}
    sources = {"a": (odd, BASE), "b": (odd, SWAPPED)}
    configs = {label: {"text_config": {"vocab_size": 32}} for label in sources}
    with pytest.raises(PlanError) as caught:
        planned(sources, configs=configs)

    assert "8 is 'ab' in a and 'cd' in b" in caught.value.message
    assert f"raymerge does not know {name} by its name" in caught.value.message
    assert "tokenizer_source" not in caught.value.message
    planned(sources, configs=configs, keep=[name])
    planned({"a": (odd, BASE), "b": (odd, BASE)}, configs=configs)


def test_a_plan_without_a_word_on_tokenizers_reads_what_is_stored() -> None:
    same = {"a": (MODEL, BASE), "b": (MODEL, BASE)}
    alone, read = planned(same), planned(dict.fromkeys(same, (MODEL, None)))

    assert alone.digest == read.digest
    assert "vocabulary" not in explain(alone)


# --- with one -------------------------------------------------------------------------------------


def test_an_order_that_all_have_costs_nothing() -> None:
    made = planned({"a": (MODEL, BASE), "b": (MODEL, BASE)}, tokenizer_source="union")

    assert all(isinstance(one, Read) for node in made.nodes for one in node.inputs)
    assert made.tokenizer is not None
    assert made.tokenizer.vocabulary is not None
    assert made.tokenizer.vocabulary.new == ()
    assert made.tokenizer.vocabulary.rows == 32


def test_every_tensor_with_a_row_per_token_is_put_in_order_and_no_other() -> None:
    bias = {BIAS: (DType.F32, (32,))}
    made = planned(
        {"a": (model(32, **bias), BASE), "b": (model(32, **bias), SWAPPED)},
        tokenizer_source="base",
    )

    remapped = {
        node.slot.name
        for node in made.nodes
        if any(isinstance(one, Remapped) for one in node.inputs)
    }
    assert remapped == {EMBEDDING, HEAD, BIAS}
    assert [type(one) for one in inputs(made, HEAD)] == [Read, Remapped]


def test_a_bias_of_one_row_follows_along_its_other_axis() -> None:
    bias = {"final_logits_bias": (DType.F32, (1, 11))}
    made = planned(
        {"a": (model(11, **bias), BASE), "b": (model(11, **bias), SWAPPED)},
        tokenizer={"source": "base", "pad_to_multiple_of": 8},
    )

    for one in inputs(made, "final_logits_bias"):
        assert isinstance(one, Remapped)
        assert one.shape == (1, 16)
        assert one.row_elements == 1
        assert one.read_bytes == 2 * 11 * 4  # once more for the mean that pads


def padded(rows: int, head_rows: int) -> Tensors:
    """A model whose head has another number of rows than its embedding."""
    return {
        **model(rows),
        HEAD: (DType.BF16, (head_rows, 16)),
        BIAS: (DType.BF16, (head_rows,)),
    }


def test_a_head_that_was_padded_by_itself_loses_what_is_behind_the_embeddings_rows() -> None:
    made = planned(
        {
            "a": (padded(11, 16), BASE),
            "b": (padded(11, 16), SWAPPED),
            "c": (model_with_bias(), BASE),
        },
        tokenizer_source="base",
    )

    for name in (HEAD, BIAS):
        kinds = [type(one) for one in inputs(made, name)]
        assert kinds == [Remapped, Remapped, Read]
        assert {node.slot.shape[0] for node in made.nodes if node.slot.name == name} == {11}
    assert [type(one) for one in inputs(made, EMBEDDING)] == [Read, Remapped, Read]
    shown = explain(made)
    assert "a: 11 tokens in 11 rows, lacks 0 of the output's; 5 more rows of its head are" in shown
    assert "c: 11 tokens in 11 rows, lacks 0 of the output's\n" in shown


def model_with_bias() -> Tensors:
    return model(11, **{BIAS: (DType.BF16, (11,))})


def test_a_padded_head_stays_where_no_row_moves() -> None:
    made = planned(
        {"a": (padded(11, 16), BASE), "b": (padded(11, 16), BASE)}, tokenizer_source="union"
    )

    assert all(isinstance(one, Read) for one in inputs(made, HEAD))
    assert "more rows of its head" not in explain(made)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls.seq.token_prior", (11,)),
        ("vocab_mixer.matrix", (4, 11)),
        ("lm_head.adapter.weight", (11, 4)),
        (HEAD, (8, 16)),
    ],
)
def test_what_seems_to_have_a_row_per_token_is_refused_where_rows_change(
    name: str, shape: tuple[int, ...]
) -> None:
    odd = model(11, **{name: (DType.BF16, shape)})
    sources = {"a": (odd, BASE), "b": (odd, SWAPPED)}
    message = f"a: {name} has shape {list(shape)} and seems to have a row per token, as "
    with pytest.raises(PlanError) as caught:
        planned(sources, tokenizer_source="base")

    assert caught.value.message.startswith(message)
    assert f"write `keep: [{name}]`" in caught.value.message
    assert caught.value.tensor == name
    for key in ("keep", "drop"):
        made = planned(sources, tokenizer_source="base", **dict[str, Any]({key: [name]}))
        assert "more rows of its head" not in explain(made)
    planned({"a": (odd, BASE), "b": (odd, BASE)}, tokenizer_source="base")


def test_lengths_that_are_so_by_chance_are_not_taken_for_rows() -> None:
    """In layers, of positions, and of anything where a row is as long as the vocabulary."""
    beside = {
        "model.layers.0.attn.sinks": (DType.BF16, (11,)),
        "model.embed_positions.weight": (DType.BF16, (11, 16)),
        "vision.head.weight": (DType.BF16, (4, 16)),
    }
    square: Tensors = {
        EMBEDDING: (DType.BF16, (11, 11)),
        HEAD: (DType.BF16, (11, 11)),
        "model.norm.weight": (DType.BF16, (11,)),
        "lm_head.dense.bias": (DType.BF16, (11,)),
        BIAS: (DType.BF16, (11,)),
    }
    for tensors in (model(11, **beside), square):
        made = planned({"a": (tensors, BASE), "b": (tensors, SWAPPED)}, tokenizer_source="base")
        moved = {
            node.slot.name
            for node in made.nodes
            if any(isinstance(one, Remapped) for one in node.inputs)
        }
        assert moved == {EMBEDDING, HEAD, BIAS} & tensors.keys()


def test_the_base_is_completed_before_deltas_are_taken() -> None:
    made = planned(
        {"base": (model(11), BASE), "a": (model(12), LONGER), "b": (model(11), SWAPPED)},
        "ties",
        base="base",
        tokenizer_source="union",
    )

    base, a, b = inputs(made, EMBEDDING)
    assert isinstance(base, Remapped)
    assert isinstance(a, Read)
    assert isinstance(b, Remapped)
    assert [read.source for read in base.parts] == [0, 1]
    assert base.shape == a.shape == b.shape == (12, 16)
    assert next(n.slot.shape for n in made.nodes if n.slot.name == EMBEDDING) == (12, 16)


def test_the_digest_names_rows_tokens_and_template() -> None:
    sources = {"a": (MODEL, BASE), "b": (MODEL, LONGER)}
    other = tokenizer(added=["</s>", "<y>"])
    digests = {
        planned(sources, tokenizer_source="union").digest,
        planned(sources, tokenizer_source="base").digest,
        planned(sources, tokenizer_source="b").digest,
        planned({**sources, "b": (MODEL, other)}, tokenizer_source="union").digest,
        planned(sources, tokenizer_source="union", chat_template="chatml").digest,
        planned(sources, tokenizer_source="union", chat_template="llama3").digest,
    }
    assert len(digests) == 6
    once = planned(sources, tokenizer_source="union").digest
    assert once == planned(sources, tokenizer_source="union").digest


@pytest.mark.parametrize(
    ("sources", "top", "message"),
    [
        ({"a": (MODEL, BASE), "b": (MODEL, None)}, {"tokenizer_source": "union"},
         "b has no file that lists its tokens"),
        ({"a": (MODEL, BASE), "b": (MODEL, b"[]")}, {"tokenizer_source": "base"},
         "b: tokenizer.json cannot be read"),
        ({"a": (without(MODEL, EMBEDDING, HEAD), BASE), "b": (MODEL, BASE)},
         {"tokenizer_source": "union"},
         "r.yaml:1: a has no embedding that raymerge knows by its name"),
        ({"a": (MODEL, BASE), "b": (MODEL, BASE)},
         {"tokenizer": {"tokens": {"<q>": {"source": "b"}}}},
         "r.yaml:1: tokens: '<q>' takes its row from '<q>' of b, which has no such row among"),
        ({"a": (MODEL, BASE), "b": (MODEL, BASE)},
         {"tokenizer": {"tokens": {"<q>": {"source": {
             "kind": "model_token", "model": "b", "token_id": 32}}}}},
         "r.yaml:1: tokens: '<q>' takes its row from 32 of b, which has no such row"),
        ({"a": (MODEL, BASE), "b": ({**MODEL, EMBEDDING: (DType.BF16, (32, 8)),
                                     HEAD: (DType.BF16, (32, 8))}, LONGER)},
         {"tokenizer_source": "union"},
         (f"a: rows of {EMBEDDING}, of shape [16], come from b where it lacks a token, and b has "
         "rows of shape [8]; sources must be of one architecture")),
        ({"a": ({**MODEL, EMBEDDING: (DType.I8, (32, 16))}, BASE), "b": (MODEL, SWAPPED)},
         {"tokenizer_source": "b"},
         f"a: {EMBEDDING} holds I8 values, whose rows cannot be put in another order"),
    ],
)  # fmt: skip
def test_a_policy_that_does_not_fit_is_refused(
    sources: Any, top: dict[str, Any], message: str
) -> None:
    with pytest.raises((PlanError, SourceError)) as caught:
        planned(sources, **top)

    assert caught.value.message.startswith(message)


def test_a_tied_source_stands_in_for_the_rows_of_a_head() -> None:
    """Its own are its embedding's; what it lacks comes from the heads of others."""
    tied = without(model(11), HEAD)
    made = planned(
        {"a": (tied, BASE), "b": (model(12), LONGER)},
        tokenizer_source="union",
        configs={"a": {"tie_word_embeddings": True}},
    )

    head = inputs(made, HEAD)[0]
    assert isinstance(head, Remapped)
    assert [(part.source, part.name) for part in head.parts] == [(0, EMBEDDING), (1, HEAD)]
    assert made.tie is not None
    assert (made.tie.tied, made.tie.stand_ins) == (False, ("a",))


def test_tensors_with_a_row_per_token_are_known_by_name_and_rows() -> None:
    tensors: Tensors = {
        "model.layers.0.mlp.up_proj.weight": (DType.BF16, (32, 16)),
        "lm_head.weight": (DType.BF16, (32, 16)),
        "lm_head.bias": (DType.BF16, (32,)),
        "model.embed_tokens.weight": (DType.BF16, (32, 16)),
        "model.layers.9.embed_tokens.weight": (DType.BF16, (32, 16)),
        "model.layers.9.shared_head.head.weight": (DType.BF16, (32, 16)),
        "vision.word_embeddings.weight": (DType.BF16, (48, 16)),
        "model.embed_positions.weight": (DType.BF16, (32, 16)),
    }
    assert set(vocabulary_tensors(catalog("a", tensors))) == {
        "lm_head.weight",
        "lm_head.bias",
        "model.embed_tokens.weight",
        "model.layers.9.embed_tokens.weight",
        "model.layers.9.shared_head.head.weight",
    }
    assert vocabulary_tensors(catalog("a", {UP: MODEL[UP]})) == ()


# --- chat templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("templates", "source"),
    [
        (["A", "B", "B"], "b"),
        (["A", "B", "C"], "a"),
        ([None, "B", "C"], "b"),
        (["", "C", None], "b"),
        ([None, None, None], None),
    ],
)
def test_auto_takes_the_template_that_most_have(
    templates: list[str | None], source: str | None
) -> None:
    merge = recipe("linear", "a", "b", "c", chat_template="auto")
    read = {
        label: TokenizerFiles(
            label,
            {"tokenizer_config.json": json.dumps({"chat_template": text}).encode()},
        )
        for label, text in zip("abc", templates, strict=True)
    }
    made = build(
        merge,
        [catalog(label) for label in "abc"],
        PlanOptions(memory_bytes=4 * GIB, threads=2),
        tokenizer_files=read,
    )

    assert made.tokenizer is not None
    assert made.tokenizer.template is not None
    assert made.tokenizer.template.source == source
    expected = None if source is None else templates["abc".index(source)]
    assert made.tokenizer.template.text == expected
    shown = f"that of {source}" if source else "auto: no source has one, so none is written"
    assert f"chat template  {shown}\n" in explain(made)
