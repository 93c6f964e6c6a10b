"""The chat template of a checkpoint, wherever it keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.strict_json import parse_config

_FILE = "chat_template.jinja"
_INSIDE = ("chat_template.json", "tokenizer_config.json")


def chat_template(folder: Folder, sizes: Mapping[str, int], *, source: str) -> str | None:
    """The template as loaders would take it: a file of its own before one inside a JSON file.

    Several named templates, which older tokenizer configs hold as a list, are returned as JSON.

    Raises:
        SourceError: A file that may hold it is no JSON object.
    """
    if _FILE in sizes:
        return folder.read(_FILE, 0, sizes[_FILE]).decode(errors="replace")
    for name in _INSIDE:
        if name not in sizes:
            continue
        config = parse_config(folder.read(name, 0, sizes[name]), file=name, source=source)
        found = config.get("chat_template")
        if found:
            return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    return None
