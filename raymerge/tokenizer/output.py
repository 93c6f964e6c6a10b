"""The vocabulary of the output: the donor's tokens, then what a policy adds, in recipe order.

Ids of added tokens are not ours to choose: whoever reads a tokenizer.json numbers them in order,
behind everything that is there. So the library that will read it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.strict_json import parse_config
from raymerge.errors import SourceError
from raymerge.recipe.tokenizer_keys import TokenizerPolicy
from raymerge.tokenizer.files import TOKENIZER_JSON, TokenizerFiles
from raymerge.tokenizer.vocabulary import (
    AddedToken,
    Vocabulary,
    add_tokens,
    declared,
    tokenizer_from,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputVocabulary:
    """Which token each row of the output's embedding is for."""

    tokens: tuple[str | None, ...]
    """By row; None is padding."""
    new: tuple[tuple[AddedToken, int], ...]
    """What the donor's tokenizer.json lacks, with ids, in their order."""
    spelt: int
    """How many of those are ordinary tokens elsewhere. Their merges do not come along: they are
    found in a text where they stand as they are spelt."""
    removed: tuple[str, ...]
    """Added tokens of the donor that have no row in its embedding and are not in the output."""
    mean_padding: bool
    """Padding rows are the mean of the others, not what the donor has there."""


def output_vocabulary(
    policy: TokenizerPolicy,
    vocabularies: Sequence[Vocabulary],
    sizes: Sequence[int],
    *,
    donor: int,
    files: TokenizerFiles,
) -> OutputVocabulary:
    """Settle the tokens of the output.

    Args:
        policy: What the recipe says.
        vocabularies: Of all sources, in recipe order.
        sizes: Rows of their embeddings.
        donor: Position of the source to begin with.
        files: The donor's.

    Raises:
        SourceError: The donor's tokenizer cannot be extended, or has tokens without a row that
            cannot be taken out.
    """
    own = vocabularies[donor]
    kept = own.within(sizes[donor])
    removed = _without_row(own, sizes[donor])
    wanted = _wanted(policy, vocabularies, sizes, donor, kept)
    new: list[tuple[AddedToken, int]] = []
    if wanted or removed:
        kept, new = _extended(kept, removed, wanted, files)
    used = max(kept.values(), default=-1) + 1
    multiple = policy.pad_to_multiple_of
    rows = max(used, sizes[donor]) if multiple is None else -(-used // multiple) * multiple
    tokens: list[str | None] = [None] * rows
    for token, number in kept.items():
        tokens[number] = token
    return OutputVocabulary(
        tokens=tuple(tokens),
        new=tuple(new),
        spelt=sum(
            any(token.content in one.ids and token.content not in one.added for one in vocabularies)
            for token, _ in new
        ),
        removed=tuple(token for token in removed if token not in kept),
        mean_padding=multiple is not None,
    )


def _without_row(vocabulary: Vocabulary, rows: int) -> list[str]:
    """Added tokens beyond the embedding, by id."""
    beyond = sorted((n, token) for token, n in vocabulary.ids.items() if n >= rows)
    fixed = [token for _, token in beyond if token not in vocabulary.added]
    if fixed:
        raise SourceError(
            f"{vocabulary.label}: its tokenizer has {len(vocabulary.ids)} tokens and its embedding "
            f"{rows} rows; {len(fixed)} tokens of the model proper, {fixed[0]!r} first, have none. "
            "Is it the tokenizer of another model?",
            source=vocabulary.label,
        )
    return [token for _, token in beyond]


def _wanted(
    policy: TokenizerPolicy,
    vocabularies: Sequence[Vocabulary],
    sizes: Sequence[int],
    donor: int,
    kept: Mapping[str, int],
) -> list[AddedToken]:
    """Tokens to add, in the order in which they get their ids."""
    order = [donor, *(s for s in range(len(vocabularies)) if s != donor)]
    definitions: dict[str, AddedToken] = {}
    for position in order:
        for token, added in vocabularies[position].added.items():
            definitions.setdefault(token, added)
    names: dict[str, None] = {}
    if policy.union:
        for position in order[1:]:
            ids = vocabularies[position].within(sizes[position])
            names |= dict.fromkeys(sorted(ids, key=ids.__getitem__))
    names |= dict.fromkeys(rule.token for rule in policy.rules)
    # A token whose text is empty is never found in a text, and the library does not add it.
    return [
        definitions.get(token, AddedToken(content=token))
        for token in names
        if token and token not in kept
    ]


def _extended(
    kept: Mapping[str, int],
    removed: Sequence[str],
    wanted: list[AddedToken],
    files: TokenizerFiles,
) -> tuple[Mapping[str, int], list[tuple[AddedToken, int]]]:
    """Ids of all tokens once some are out and others in, and what the file has to get."""
    if TOKENIZER_JSON not in files.contents:
        raise SourceError(
            f"{files.label} has no {TOKENIZER_JSON}, and tokens have to be added to or taken out "
            'of its tokenizer; make one with: python -c "from transformers import AutoTokenizer; '
            "AutoTokenizer.from_pretrained('<folder>').save_pretrained('<folder>')\"",
            source=files.label,
            file=TOKENIZER_JSON,
        )
    tokenizer = tokenizer_from(without_added(files, set(removed)), files.label)
    named = [token for token, _ in declared(files) if token.content not in set(removed)]
    missing = [token for token in named if tokenizer.token_to_id(token.content) is None]
    additions = [*missing, *wanted]
    add_tokens(tokenizer, additions)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    for token, number in kept.items():
        if ids.get(token) != number:
            raise SourceError(
                f"{files.label}: {token!r} has id {number} and would get {ids.get(token)} once "
                "tokens are added; save its tokenizer again",
                source=files.label,
                file=TOKENIZER_JSON,
            )
    new = [(token, ids[token.content]) for token in additions if token.content in ids]
    return ids, sorted(new, key=lambda pair: pair[1])


def without_added(files: TokenizerFiles, removed: set[str]) -> str:
    """A tokenizer.json without some of its added tokens; as it is where none of them is in it."""
    raw = files.contents[TOKENIZER_JSON]
    if not removed:
        return raw.decode(errors="replace")
    document = parse_config(raw, file=TOKENIZER_JSON, source=files.label)
    document["added_tokens"] = [
        entry for entry in document.get("added_tokens") or () if entry.get("content") not in removed
    ]
    return json.dumps(document, ensure_ascii=False)
