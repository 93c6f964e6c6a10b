"""Where chat templates are kept, and which of several counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.template import template_of, with_template

NAMED = [{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}]


def contents(**files: Any) -> dict[str, bytes]:
    return {
        name.replace("__", "."): text.encode()
        if isinstance(text, str)
        else json.dumps(text).encode()
        for name, text in files.items()
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"chat_template__jinja": "J", "tokenizer_config__json": {"chat_template": "C"}}, "J"),
        ({"chat_template__jinja": " \n", "tokenizer_config__json": {"chat_template": "C"}}, "C"),
        ({"tokenizer_config__json": {"chat_template": NAMED}}, "D"),
        ({"tokenizer_config__json": {"chat_template": NAMED[1:]}}, None),
        ({"tokenizer_config__json": {}, "chat_template__json": {"chat_template": "I"}}, "I"),
        ({"tokenizer_config__json": {"chat_template": ""}}, None),
    ],
)
def test_one_of_several_counts(files: dict[str, Any], expected: str | None) -> None:
    assert template_of(TokenizerFiles("a", contents(**files))) == expected


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        ({}, {"chat_template__jinja": "N"}),
        ({"tokenizer_config__json": {"a": 1}},
         {"tokenizer_config__json": {"a": 1, "chat_template": "N"}}),
        ({"chat_template__jinja": "J", "tokenizer_config__json": {"a": 1}},
         {"chat_template__jinja": "N"}),
        ({"chat_template__jinja": "J", "tokenizer_config__json": {"chat_template": "C"}},
         {"chat_template__jinja": "N", "tokenizer_config__json": {"chat_template": "N"}}),
        ({"tokenizer_config__json": {"chat_template": NAMED}},
         {"tokenizer_config__json": {
             "chat_template": [{"name": "default", "template": "N"}, NAMED[1]]}}),
        ({"chat_template__json": {"chat_template": "I"}},
         {"chat_template__json": {"chat_template": "N"}}),
    ],
)  # fmt: skip
def test_a_template_goes_where_there_was_one(
    files: dict[str, Any], changed: dict[str, Any]
) -> None:
    made = with_template("N", contents(**files), label="a")

    parsed = {
        name: json.loads(raw) if name.endswith("json") else raw.decode()
        for name, raw in made.items()
    }
    assert parsed == {name.replace("__", "."): value for name, value in changed.items()}
    assert template_of(TokenizerFiles("a", {**contents(**files), **made})) == "N"
