"""Ids of tokens in a model's settings, where the tokenizer is not the one they were written for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raymerge.checkpoint.catalog import CONFIG_NAME
from raymerge.checkpoint.strict_json import parse_config
from raymerge.checkpoint.ties import config_sections
from raymerge.tokenizer.files import GENERATION_CONFIG, TokenizerFiles

Changes = dict[str, dict[str, Any]]
"""New values by file and key."""

_ENDINGS = ("_token_id", "_token_index")


def token_ids(
    donor: tuple[Mapping[str, Any], TokenizerFiles],
    tokenizer_donor: tuple[Mapping[str, Any], TokenizerFiles],
    *,
    before: Mapping[int, str],
    after: Mapping[str, int],
) -> Changes:
    """What becomes of keys such as `eos_token_id` in config.json and generation_config.json.

    The tokenizer's donor knows best which of its tokens ends a text; where it does not say, the
    token that the id meant before is looked up.

    Args:
        donor: config.json and files of who gives the settings.
        tokenizer_donor: The same of who gives the tokenizer.
        before: Tokens of the donor by id.
        after: Ids of the output by token.
    """
    changes: Changes = {}
    for name in (CONFIG_NAME, GENERATION_CONFIG):
        ours = dict(_said(*donor, name))
        theirs = dict(_said(*tokenizer_donor, name))
        new = {
            key: theirs[key] if key in theirs else _translated(value, before, after)
            for key, value in ours.items()
        }
        if changed := {key: value for key, value in new.items() if value != ours[key]}:
            changes[name] = changed
    return changes


def with_changes(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config, or a part of one, with the new ids under the keys that it has."""
    return {key: changes.get(key, value) for key, value in section.items()}


def _said(config: Mapping[str, Any], files: TokenizerFiles, name: str) -> Iterator[tuple[str, Any]]:
    if name == GENERATION_CONFIG:
        if name not in files.contents:
            return
        config = parse_config(files.contents[name], file=name, source=files.label)
    # The outermost part is the last to speak.
    for section in reversed(config_sections(config)):
        for key, value in section.items():
            if key.endswith(_ENDINGS):
                yield key, value


def _translated(value: Any, before: Mapping[int, str], after: Mapping[str, int]) -> Any:
    """An id, or a list of ids, as the output numbers the same tokens; None for what it lacks."""
    if isinstance(value, list):
        found = [_translated(one, before, after) for one in value]
        return [one for one in found if one is not None]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return after.get(before.get(value, ""))
