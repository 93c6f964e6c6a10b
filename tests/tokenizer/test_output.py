"""The tokens of the output and their ids: the library that reads them has to agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from raymerge.errors import SourceError
from raymerge.recipe.document import Place
from raymerge.recipe.tokenizer_keys import TokenizerPolicy, TokenRule
from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.output import OutputVocabulary, output_vocabulary
from raymerge.tokenizer.vocabulary import read_vocabulary
from tests.vocabularies import LETTERS, size, tokenizer

PLACE = Place("r.yaml", 4)


def output(
    *made: Tokenizer,
    union: bool = True,
    rules: tuple[str, ...] = (),
    pad: int | None = None,
    rows: tuple[int, ...] | None = None,
) -> OutputVocabulary:
    files = [TokenizerFiles(str(i), {"tokenizer.json": t.to_str().encode()})
             for i, t in enumerate(made)]  # fmt: skip
    policy = TokenizerPolicy(
        place=PLACE,
        union=union,
        donor="0",
        rules=tuple(TokenRule(place=PLACE, token=t, kind="default") for t in rules),
        pad_to_multiple_of=pad,
    )
    sizes = rows or tuple(map(size, made))
    vocabularies = list(map(read_vocabulary, files))
    return output_vocabulary(policy, vocabularies, sizes, donor=0, files=files[0])


FIRST = tokenizer(("ab",), ["</s>"])
SECOND = tokenizer(("cd", "ab"), ["<x>", "</s>"])


def test_a_donor_alone_stays_what_it_is() -> None:
    made = output(FIRST, SECOND, union=False)

    assert made.tokens == (*LETTERS, "ab", "</s>")
    assert (made.new, made.removed, made.mean_padding) == ((), (), False)


def test_tokens_of_others_follow_by_their_ids_then_the_recipes() -> None:
    made = output(FIRST, SECOND, rules=("<q>", "cd", "a"))

    assert made.tokens[10:] == ("cd", "<x>", "<q>")
    assert [(token.content, number) for token, number in made.new] == [
        ("cd", 10),
        ("<x>", 11),
        ("<q>", 12),
    ]
    assert [token.special for token, _ in made.new] == [False, True, False]
    assert made.spelt == 1


def test_padding_is_kept_used_up_and_rounded() -> None:
    assert output(FIRST, SECOND, rows=(16, 11)).tokens[12:] == (None,) * 4
    assert len(output(FIRST, SECOND, rows=(11, 11)).tokens) == 12
    rounded = output(FIRST, SECOND, rows=(64, 11), pad=8)
    assert len(rounded.tokens) == 16
    assert rounded.mean_padding
    assert len(output(FIRST, SECOND, pad=1).tokens) == 12


def test_a_token_without_a_row_is_no_token_of_the_source() -> None:
    made = output(SECOND, FIRST, rows=(11, 10))
    # Its first added token keeps its row; the second gets one, for the other source has one.
    assert made.tokens[10] == "<x>"
    assert made.tokens[11] == "</s>"
    assert made.removed == ()
    alone = output(SECOND, FIRST, union=False, rows=(11, 10))
    assert (alone.removed, len(alone.tokens)) == (("</s>",), 11)
    assert [t.content for t, _ in output(FIRST, SECOND, rows=(10, 10)).new] == ["cd"]


def test_the_tokens_of_a_model_proper_cannot_be_left_out() -> None:
    with pytest.raises(
        SourceError, match=r"0: its tokenizer has 10 tokens and its embedding 8 row"
    ):
        output(FIRST, SECOND, rows=(8, 11))


def test_tokens_cannot_be_added_without_a_tokenizer_json() -> None:
    files = TokenizerFiles("0", {"vocab.json": json.dumps({"a": 0}).encode()})
    policy = TokenizerPolicy(
        place=PLACE,
        union=False,
        donor="0",
        rules=(TokenRule(place=PLACE, token="<q>", kind="zero"),),
    )
    with pytest.raises(SourceError, match=r"0 has no tokenizer.json, and tokens have to be added"):
        output_vocabulary(policy, [read_vocabulary(files)], [1], donor=0, files=files)


words = st.lists(
    st.sampled_from([a + b for a in LETTERS for b in LETTERS]), unique=True, max_size=5
)
specials = st.lists(st.sampled_from([f"<{c}>" for c in LETTERS]), unique=True, max_size=4)
sources = st.lists(st.builds(tokenizer, words, specials), min_size=1, max_size=4)


@settings(max_examples=40)
@given(sources)
def test_every_token_is_there_once_and_the_donors_stay_in_place(made: list[Tokenizer]) -> None:
    found = output(*made)

    tokens = [token for token in found.tokens if token is not None]
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) == {token for one in made for token in one.get_vocab()}
    for token, number in made[0].get_vocab().items():
        assert found.tokens[number] == token
