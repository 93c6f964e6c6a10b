"""The tokenizer beside the shards: the donor's files, changed where the recipe asks for it.

What changes is parsed and written again, everything else stays byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.checkpoint.strict_json import parse_config
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.plan.vocabulary import TEXT_SECTIONS, PlannedVocabulary
from raymerge.runtime.readers import open_planned
from raymerge.runtime.side_files import side_files
from raymerge.storage.store import Access
from raymerge.tokenizer.files import (
    ADDED_TOKENS,
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
)
from raymerge.tokenizer.template import dumped, with_template
from raymerge.tokenizer.token_ids import with_changes
from raymerge.tokenizer.vocabulary import AddedToken

_SIZE_KEY = "vocab_size"
_SPECIAL_KEYS = ("additional_special_tokens", "extra_special_tokens")

Document = dict[str, Any]


def files_beside(plan: Plan, access: Access) -> dict[str, bytes]:
    """What lies beside the shards of a plan's output, by name: the donor's files, made to fit.

    Raises:
        SourceError: One of them is gone or changed since the merge was planned.
    """
    donor = open_planned(plan.donor, access)
    return with_tokenizer(plan, side_files(plan, donor), access)


def with_tokenizer(
    plan: Plan, files: Mapping[str, bytes], access: Access | None = None
) -> dict[str, bytes]:
    """The files beside the shards with the tokenizer that the plan asks for.

    Raises:
        SourceError: A file of the tokenizer's donor is gone or changed.
    """
    planned = plan.tokenizer
    if planned is None:
        return dict(files)
    made = dict(files)
    if planned.donor != plan.donor.label:
        source = next(s for s in plan.sources if s.label == planned.donor)
        made = {name: raw for name, raw in made.items() if name not in TOKENIZER_FILES}
        made |= _copied(source, access)
    if planned.vocabulary:
        made |= _fitted(planned.vocabulary, made)
    if planned.template and planned.template.text is not None:
        made |= with_template(planned.template.text, made, label=planned.donor)
    return made


def _copied(source: PlannedSource, access: Access | None) -> dict[str, bytes]:
    """The tokenizer files of a source, as they were when the merge was planned."""
    folder = open_planned(source, access or Access())
    sizes = folder.sizes()
    copied = {}
    for name in source.side_files:
        if name not in TOKENIZER_FILES:
            continue
        if name not in sizes or folder.pin(name) != source.side_pins.get(name, folder.pin(name)):
            raise SourceError(
                f"{source.label}: {name} changed since the merge was planned; plan again",
                source=source.label,
                file=name,
            )
        copied[name] = folder.read(name, 0, sizes[name])
    return copied


def _fitted(vocabulary: PlannedVocabulary, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that the vocabulary changes."""
    changed = {}
    for name, fit in _FITS.items():
        if name in files:
            document = parse_config(files[name], file=name, source=vocabulary.donor)
            fitted = fit(document, vocabulary)
            if fitted != document:
                changed[name] = dumped(fitted)
    return changed


def _fit_tokenizer(document: Document, vocabulary: PlannedVocabulary) -> Document:
    entries = _without(document.get("added_tokens") or [], vocabulary.removed)
    entries += [{"id": number, **token.as_json()} for token, number in vocabulary.new]
    return {**document, "added_tokens": sorted(entries, key=lambda entry: entry["id"])}


def _fit_tokenizer_config(document: Document, vocabulary: PlannedVocabulary) -> Document:
    fitted = _fit_special(document, vocabulary)
    decoder = document.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        left = {
            number: entry
            for number, entry in decoder.items()
            if entry.get("content") not in vocabulary.removed
        }
        new = {str(number): token.as_json() for token, number in vocabulary.new}
        fitted["added_tokens_decoder"] = {**left, **new}
    return fitted


def _fit_added(document: Document, vocabulary: PlannedVocabulary) -> Document:
    left = {token: n for token, n in document.items() if token not in vocabulary.removed}
    return {**left, **{token.content: number for token, number in vocabulary.new}}


def _fit_special(document: Document, vocabulary: PlannedVocabulary) -> Document:
    """Name new special tokens where the donor names its own."""
    # A name for a token that is gone would have it added again, at an id without a row.
    fitted = {key: v for key, v in document.items() if not _names(key, v, vocabulary.removed)}
    for key in _SPECIAL_KEYS:
        named = document.get(key)
        if isinstance(named, list) and named:
            left = _without(named, vocabulary.removed)
            known = {_content(entry) for entry in left}
            new = [t for t, _ in vocabulary.new if t.special and t.content not in known]
            fitted[key] = left + [_like(named[0], token) for token in new]
    return fitted


def _fit_config(document: Document, vocabulary: PlannedVocabulary) -> Document:
    fitted = with_changes(document, vocabulary.changes.get(CONFIG_NAME, {}))
    sections = [name for name in TEXT_SECTIONS if isinstance(fitted.get(name), dict)]
    # Where the key is absent the class has a default, which is the donor's number of rows.
    absent = vocabulary.resized and not sections
    if absent or isinstance(fitted.get(_SIZE_KEY), int):
        fitted[_SIZE_KEY] = vocabulary.rows
    for name in sections:
        fitted[name] = _fit_config(fitted[name], vocabulary)
    return fitted


def _fit_generation(document: Document, vocabulary: PlannedVocabulary) -> Document:
    return with_changes(document, vocabulary.changes.get(GENERATION_CONFIG, {}))


_FITS = {
    TOKENIZER_JSON: _fit_tokenizer,
    TOKENIZER_CONFIG: _fit_tokenizer_config,
    ADDED_TOKENS: _fit_added,
    SPECIAL_TOKENS: _fit_special,
    CONFIG_NAME: _fit_config,
    GENERATION_CONFIG: _fit_generation,
}


def _without(entries: Sequence[Any], removed: Sequence[str]) -> list[Any]:
    return [entry for entry in entries if _content(entry) not in removed]


def _names(key: str, value: Any, tokens: Sequence[str]) -> bool:
    return key.endswith("_token") and _content(value) in tokens


def _content(entry: Any) -> object:
    return entry.get("content") if isinstance(entry, dict) else entry


def _like(entry: Any, token: AddedToken) -> Any:
    """A token in the form that an entry of the list has: its text, or all about it."""
    if isinstance(entry, dict):
        return {key: value for key, value in token.as_json().items() if key in entry}
    return token.content
