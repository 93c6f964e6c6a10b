"""The tokens of a source, from whatever files it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken as LibraryToken

from raymerge.errors import SourceError
from raymerge.storage.posix import PosixFolder
from raymerge.tokenizer.files import TokenizerFiles, read_tokenizer_files
from raymerge.tokenizer.sentencepiece import pieces
from raymerge.tokenizer.vocabulary import AddedToken, read_each, read_vocabulary
from tests.vocabularies import tokenizer, write_tokenizer

MADE = tokenizer(("ab",), [LibraryToken("<x>", lstrip=True), "</s>"])
TOKENIZER_JSON = MADE.to_str().encode()


def files(**contents: Any) -> TokenizerFiles:
    """Files by name, with `_` for the dot; what is no bytes is written as JSON."""
    return TokenizerFiles(
        "a",
        {
            name.replace("__", "."): raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            for name, raw in contents.items()
        },
    )


def piece(text: str) -> bytes:
    """A sentencepiece message: the piece, a score, a type."""
    raw = text.encode()
    message = b"\x0a" + bytes([len(raw)]) + raw + b"\x15\x00\x00\x80\x3f" + b"\x18\x01"
    return b"\x0a" + bytes([len(message)]) + message


SENTENCEPIECE = (
    piece("<unk>") + piece("a") + b"\x12\x02\x08\x01" + piece("\N{LOWER ONE EIGHTH BLOCK}b")
)


def test_ids_are_the_librarys() -> None:
    found = read_vocabulary(files(tokenizer__json=TOKENIZER_JSON))

    assert found.ids == MADE.get_vocab()
    assert found.added == {
        "<x>": AddedToken(content="<x>", lstrip=True, normalized=True),
        "</s>": AddedToken(content="</s>", special=True),
    }
    assert found.within(10) == {token: n for token, n in MADE.get_vocab().items() if n < 10}


def test_tokens_beside_tokenizer_json_are_added_as_transformers_does() -> None:
    decoder = {"11": {"content": "<z>", "special": True}, "10": {"content": "</s>"}}
    older = {"<w>": 11}
    found = read_vocabulary(
        files(
            tokenizer__json=TOKENIZER_JSON,
            tokenizer_config__json={"added_tokens_decoder": decoder},
            added_tokens__json=older,
        )
    )

    assert found.ids == {**MADE.get_vocab(), "<z>": 11}
    assert found.added["<z>"].special
    found = read_vocabulary(files(tokenizer__json=TOKENIZER_JSON, added_tokens__json=older))
    assert found.ids == {**MADE.get_vocab(), "<w>": 11}
    assert not found.added["<w>"].special


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"vocab__json": {"a": 1, "b": 0}}, {"a": 1, "b": 0}),
        ({"vocab__txt": b"[PAD]\na\nb\n"}, {"[PAD]": 0, "a": 1, "b": 2}),
        (
            {"tokenizer__model": SENTENCEPIECE},
            {"<unk>": 0, "a": 1, "\N{LOWER ONE EIGHTH BLOCK}b": 2},
        ),
        (
            {"tokenizer__model": SENTENCEPIECE, "added_tokens__json": {"<x>": 3}},
            {"<unk>": 0, "a": 1, "\N{LOWER ONE EIGHTH BLOCK}b": 2, "<x>": 3},
        ),
        ({"vocab__json": {"a": 0}, "vocab__txt": b"b"}, {"a": 0}),
    ],
)
def test_older_forms_are_read_too(contents: dict[str, Any], expected: dict[str, int]) -> None:
    assert read_vocabulary(files(**contents)).ids == expected


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "a has no file that lists its tokens (tokenizer.json, vocab.json"),
        ({"tokenizer__json": b"{}"}, "a: tokenizer.json cannot be read: Model missing"),
        ({"tokenizer__json": b"\xff"}, "a: tokenizer.json cannot be read: "),
        ({"vocab__json": {"a": "b"}}, "a: vocab.json: the id of 'a' is 'b', not a number"),
        ({"vocab__json": {"a": 0, "b": 0}}, "a: vocab.json: 'a' and 'b' both have id 0"),
        ({"vocab__json": b"["}, "a: vocab.json cannot be read: it is not valid JSON"),
        ({"tokenizer__model": b"\x0a\xff"}, "a: tokenizer.model is not a sentencepiece model"),
        ({"tokenizer__model": b"\x0a\x7f"}, "a: tokenizer.model is not a sentencepiece model"),
        ({"tokenizer__model": b"\x0f"}, "a: tokenizer.model is not a sentencepiece model (wire"),
        (
            {"vocab__json": {"a": 0}, "added_tokens__json": {"a": 1}},
            "a: 'a' has id 1 in tokenizer_config.json or added_tokens.json and 0 by vocab.json",
        ),
        (
            {"tokenizer__json": TOKENIZER_JSON, "added_tokens__json": {"<w>": 40}},
            "a: '<w>' has id 40 in tokenizer_config.json or added_tokens.json and 11 by tokenizer",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(contents: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_vocabulary(files(**contents))

    assert caught.value.message.startswith(message)
    assert caught.value.source == "a"


def test_fields_of_a_sentencepiece_model_that_are_not_pieces_are_passed_over() -> None:
    raw = b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x18\x96\x01" + SENTENCEPIECE
    assert len(list(pieces(raw, file="f", source="a"))) == 3


def test_equal_files_are_read_once_under_each_label(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tokenizer(tmp_path / name, MADE)
    (tmp_path / "a" / "README.md").write_text("x")
    read = [
        read_tokenizer_files(
            PosixFolder(tmp_path / name), ["tokenizer.json", "tokenizer_config.json"], label=name
        )
        for name in ("a", "b")
    ]
    assert read[0].any
    assert read[0].fingerprint == read[1].fingerprint
    first, second = read_each(read)
    assert (first.label, second.label) == ("a", "b")
    assert first.ids is second.ids
    assert not TokenizerFiles("c", {"tokenizer_config.json": b"{}"}).any
