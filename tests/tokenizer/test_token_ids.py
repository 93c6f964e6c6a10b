"""Ids of tokens in configs, where the tokenizer is another source's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.token_ids import token_ids, with_changes

BEFORE = {0: "<s>", 1: "</s>", 2: "<pad>"}
AFTER = {"</s>": 7, "<s>": 0}


def changes(
    config: dict[str, Any],
    other: dict[str, Any],
    generation: dict[str, Any] | None = None,
    other_generation: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    def files(document: dict[str, Any] | None) -> TokenizerFiles:
        raw = {} if document is None else {"generation_config.json": json.dumps(document).encode()}
        return TokenizerFiles("a", raw)

    return token_ids(
        (config, files(generation)), (other, files(other_generation)), before=BEFORE, after=AFTER
    )


@pytest.mark.parametrize(
    ("config", "other", "expected"),
    [
        ({"eos_token_id": 1, "bos_token_id": 0}, {}, {"eos_token_id": 7}),
        ({"eos_token_id": 1}, {"eos_token_id": 5}, {"eos_token_id": 5}),
        ({"eos_token_id": [0, 1]}, {}, {"eos_token_id": [0, 7]}),
        ({"pad_token_id": 2, "eos_token_id": [1, 2]}, {},
         {"pad_token_id": None, "eos_token_id": [7]}),
        ({"pad_token_id": None, "vocab_size": 1}, {"vocab_size": 9}, {}),
        ({"image_token_index": 1, "text_config": {"eos_token_id": 1}}, {},
         {"image_token_index": 7, "eos_token_id": 7}),
    ],
)  # fmt: skip
def test_ids_follow_their_tokens(
    config: dict[str, Any], other: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert changes(config, other) == ({"config.json": expected} if expected else {})


def test_the_generation_config_has_its_own() -> None:
    assert changes({}, {}, {"eos_token_id": [1], "top_p": 1}, {"eos_token_id": [3, 4]}) == {
        "generation_config.json": {"eos_token_id": [3, 4]}
    }
    assert changes({}, {}, {"eos_token_id": 1}) == {"generation_config.json": {"eos_token_id": 7}}


def test_only_keys_that_are_there_change() -> None:
    assert with_changes({"a": 1, "b": 2}, {"b": 3, "c": 4}) == {"a": 1, "b": 3}
