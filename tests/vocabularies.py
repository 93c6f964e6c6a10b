"""Small tokenizers for tests, made and written by the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

LETTERS = "abcdefgh"


def tokenizer(
    words: Sequence[str] = ("ab", "cd"),
    added: Sequence[str | AddedToken] = (),
    *,
    letters: str = LETTERS,
) -> Tokenizer:
    """Byte-level BPE over a few letters, with pairs of them as further tokens.

    A string among `added` is a special token.
    """
    vocabulary = {token: number for number, token in enumerate([*letters, *words])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[(word[0], word[1]) for word in words]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(t, special=True) if isinstance(t, str) else t for t in added])
    return made


def write_tokenizer(path: Path, made: Tokenizer, **config: Any) -> Tokenizer:
    """Write tokenizer.json and a tokenizer_config.json that transformers can load."""
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    document = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(document))
    return made


def size(made: Tokenizer) -> int:
    """Tokens of a tokenizer."""
    return made.get_vocab_size(with_added_tokens=True)


def by_token(matrix: Tensor, made: Tokenizer) -> dict[str, Tensor]:
    """Rows of an embedding by token."""
    ids = made.get_vocab(with_added_tokens=True)
    return {token: matrix[number].to(torch.float32) for token, number in ids.items()}


Rows = dict[str, Tensor]


def completed(
    tokens: Sequence[str],
    sources: Sequence[Rows],
    *,
    base: int = 0,
    given: dict[str, Tensor] | None = None,
    force: frozenset[str] = frozenset(),
) -> list[Rows]:
    """Rows by token of every source, once each has one for all `tokens`: the rule, spelt out."""
    filled: list[Rows] = []
    for own in sources:
        rows: Rows = {}
        for token in tokens:
            having = [source[token] for source in sources if token in source]
            if token in own and token not in force:
                rows[token] = own[token]
            elif given and token in given:
                rows[token] = given[token]
            elif token in sources[base]:
                rows[token] = sources[base][token]
            elif having:
                rows[token] = torch.stack(having).sum(0) / len(having)
            else:
                rows[token] = torch.zeros_like(next(iter(own.values())))
        filled.append(rows)
    return filled
