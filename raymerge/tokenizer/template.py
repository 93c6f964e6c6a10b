"""Where a tokenizer keeps its chat template, and how to put another in its place.

chat_template.jinja      the newer place; where it is there it counts
tokenizer_config.json    under `chat_template`: the text, or a list of them by name
chat_template.json       the same for models that take images
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raymerge.checkpoint.strict_json import parse_config
from raymerge.tokenizer.files import (
    TEMPLATE_JINJA,
    TEMPLATE_JSON,
    TOKENIZER_CONFIG,
    TokenizerFiles,
)

_KEY, _DEFAULT = "chat_template", "default"


def template_of(files: TokenizerFiles) -> str | None:
    """The chat template of a source; of several, the one called default."""
    jinja = files.contents.get(TEMPLATE_JINJA)
    if jinja is not None and (text := jinja.decode(errors="replace")).strip():
        return text
    for name in (TOKENIZER_CONFIG, TEMPLATE_JSON):
        if name in files.contents:
            document = parse_config(files.contents[name], file=name, source=files.label)
            if found := _text(document.get(_KEY)):
                return found
    return None


def with_template(text: str, contents: Mapping[str, bytes], *, label: str) -> dict[str, bytes]:
    """The files that change, so that `text` is the template wherever there was one.

    Args:
        text: The jinja.
        contents: The output's files so far.
        label: Whose they are, for messages.
    """
    changed: dict[str, bytes] = {}
    if TEMPLATE_JINJA in contents:
        changed[TEMPLATE_JINJA] = text.encode()
    for name in (TOKENIZER_CONFIG, TEMPLATE_JSON):
        if name not in contents:
            continue
        document = parse_config(contents[name], file=name, source=label)
        if document.get(_KEY) is not None:
            document[_KEY] = _replaced(document[_KEY], text)
            changed[name] = dumped(document)
    if changed:
        return changed
    if TOKENIZER_CONFIG not in contents:
        return {TEMPLATE_JINJA: text.encode()}
    # Every version of transformers that knows chat templates reads this one.
    document = parse_config(contents[TOKENIZER_CONFIG], file=TOKENIZER_CONFIG, source=label)
    return {TOKENIZER_CONFIG: dumped({**document, _KEY: text})}


def dumped(document: Mapping[str, Any]) -> bytes:
    """A JSON file as tokenizers are written: readable, in UTF-8."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _text(found: Any) -> str | None:
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if entry}
        found = named.get(_DEFAULT)
    return found if isinstance(found, str) and found.strip() else None


def _replaced(found: Any, text: str) -> Any:
    """The template under its key; among several by name only the default changes."""
    if not isinstance(found, list):
        return text
    others = [entry for entry in found if entry.get("name") != _DEFAULT]
    return [{"name": _DEFAULT, "template": text}, *others]
