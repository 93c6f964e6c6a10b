"""The tokens of a source and their ids, from whatever files it has.

    tokenizer.json             read by the `tokenizers` library, whose ids are the ones that count
    vocab.json, vocab.txt      a mapping from token to id, or one token a line
    tokenizer.model            a sentencepiece model: its pieces in order

What `tokenizer_config.json` and `added_tokens.json` add to these is added as transformers does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from raymerge.checkpoint.strict_json import parse_config
from raymerge.errors import SourceError
from raymerge.tokenizer.files import (
    ADDED_TOKENS,
    SENTENCEPIECE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCAB_JSON,
    VOCABULARY_FILES,
    TokenizerFiles,
)
from raymerge.tokenizer.sentencepiece import pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token that is found in a text before the rest of it is cut up."""

    content: str
    special: bool = False
    """Left out of decoded text on request."""
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def as_json(self) -> dict[str, Any]:
        """Its entry in a `tokenizer_config.json`."""
        return asdict(self)


_FLAGS = tuple(AddedToken.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of a source."""

    label: str
    ids: Mapping[str, int]
    """Ids by token."""
    added: Mapping[str, AddedToken]
    """Those of them that are added tokens."""

    def within(self, rows: int) -> Mapping[str, int]:
        """The tokens that have a row in an embedding of `rows`."""
        if max(self.ids.values(), default=-1) < rows:
            return self.ids
        return {token: number for token, number in self.ids.items() if number < rows}


def read_vocabulary(files: TokenizerFiles) -> Vocabulary:
    """The tokens of a source.

    Raises:
        SourceError: A file cannot be read, two files contradict each other, or none lists tokens.
    """
    name = next((name for name in VOCABULARY_FILES if name in files.contents), None)
    if name is None:
        raise SourceError(
            f"{files.label} has no file that lists its tokens ({', '.join(VOCABULARY_FILES)}); "
            "put the tokenizer of the model it was made from beside its weights",
            source=files.label,
        )
    if name == TOKENIZER_JSON:
        tokenizer = tokenizer_from(files.contents[name].decode(errors="replace"), files.label)
        ids = tokenizer.get_vocab(with_added_tokens=True)
        if missing := [token for token, _ in declared(files) if token.content not in ids]:
            add_tokens(tokenizer, missing)
            ids = tokenizer.get_vocab(with_added_tokens=True)
        added = {
            token.content: AddedToken(**{name: getattr(token, name) for name in _FLAGS})
            for token in tokenizer.get_added_tokens_decoder().values()
        }
    else:
        ids, added = dict(_listed_tokens(name, files)), {}
    for token, number in declared(files):
        if ids.setdefault(token.content, number) != number:
            raise SourceError(
                f"{files.label}: {token.content!r} has id {number} in {TOKENIZER_CONFIG} or "
                f"{ADDED_TOKENS} and {ids[token.content]} by {name}; save the tokenizer again",
                source=files.label,
                file=name,
            )
        added.setdefault(token.content, token)
    _refuse_twins(files.label, ids, name)
    return Vocabulary(label=files.label, ids=ids, added=added)


def read_each(files: Sequence[TokenizerFiles]) -> list[Vocabulary]:
    """Vocabularies of all sources; equal files are read once."""
    read: dict[str, Vocabulary] = {}
    for one in files:
        if one.fingerprint not in read:
            read[one.fingerprint] = read_vocabulary(one)
    return [replace(read[one.fingerprint], label=one.label) for one in files]


def tokenizer_from(text: str, label: str) -> Tokenizer:
    """The `tokenizers` library's reading of a tokenizer.json."""
    from tokenizers import Tokenizer

    with _Refusals(label):
        return Tokenizer.from_str(text)


class _Refusals:
    """Makes a SourceError of what the library raises, which is a plain `Exception`."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is Exception:
            raise SourceError(
                f"{self._label}: {TOKENIZER_JSON} cannot be read: {error}; fetch or save the "
                "tokenizer again",
                source=self._label,
                file=TOKENIZER_JSON,
            )


def add_tokens(tokenizer: Tokenizer, tokens: list[AddedToken]) -> None:
    """Add tokens; the library gives each the next free id."""
    from tokenizers import AddedToken as LibraryToken

    tokenizer.add_tokens([LibraryToken(**asdict(token)) for token in tokens])


def declared(files: TokenizerFiles) -> list[tuple[AddedToken, int]]:
    """Added tokens with their ids by tokenizer_config.json, else by added_tokens.json, by id."""
    decoder = _document(files, TOKENIZER_CONFIG).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        found = [
            (_added(entry), int(number))
            for number, entry in decoder.items()
            if isinstance(entry, dict) and number.isdecimal() and "content" in entry
        ]
    else:
        # The older place: loaders look there only if there is nothing in the newer one.
        listed = _document(files, ADDED_TOKENS).items()
        found = [(AddedToken(content=t), n) for t, n in listed if isinstance(n, int)]
    return sorted(found, key=lambda pair: pair[1])


def _document(files: TokenizerFiles, name: str) -> dict[str, Any]:
    if name not in files.contents:
        return {}
    return parse_config(files.contents[name], file=name, source=files.label)


def _added(entry: Mapping[str, Any]) -> AddedToken:
    flags = {key: bool(entry[key]) for key in _FLAGS if key in entry and key != "content"}
    return AddedToken(content=str(entry["content"]), **flags)


def _listed_tokens(name: str, files: TokenizerFiles) -> Iterator[tuple[str, int]]:
    raw = files.contents[name]
    if name == VOCAB_JSON:
        for token, number in parse_config(raw, file=name, source=files.label).items():
            if not isinstance(number, int):
                raise SourceError(
                    f"{files.label}: {name}: the id of {token!r} is {number!r}, not a number; "
                    "fetch the file again",
                    source=files.label,
                    file=name,
                )
            yield token, number
    elif name in SENTENCEPIECE:
        for number, token in enumerate(pieces(raw, file=name, source=files.label)):
            yield token, number
    else:
        for number, line in enumerate(raw.decode(errors="replace").splitlines()):
            yield line, number


def _refuse_twins(label: str, ids: Mapping[str, int], name: str) -> None:
    if len(set(ids.values())) == len(ids):
        return
    seen: dict[int, str] = {}
    for token, number in ids.items():
        if seen.setdefault(number, token) != token:
            raise SourceError(
                f"{label}: {name}: {seen[number]!r} and {token!r} both have id {number}; save the "
                "tokenizer again",
                source=label,
                file=name,
            )
