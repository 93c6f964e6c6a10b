"""What the sources' configs and tokenizers disagree about, for the plan to show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymerge.checkpoint.catalog import CONFIG_NAME, Catalog
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.strict_json import parse_config

# Differ between any two checkpoints and say nothing about the model.
_BOOKKEEPING = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype"})
_BY_KEY = ("generation_config.json",)
_BY_CONTENT = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
)
# The largest tokenizers are some 30 MB; beyond this only sizes are compared.
_MAX_HASHED_BYTES = 64_000_000
_ABSENT = "absent"
_MAX_SHOWN = 60


def config_differences(
    catalogs: Sequence[Catalog], folders: Mapping[str, Folder]
) -> tuple[str, ...]:
    """One readable line per disagreement, empty where all sources agree.

    Keys of config.json and generation_config.json are compared one by one, tokenizer and processor
    files by their content.

    Args:
        catalogs: The sources.
        folders: Where to read the small files, by label; a source not in it has its config compared
            and nothing else.
    """
    configs = {catalog.label: catalog.config for catalog in catalogs}
    lines = list(_key_differences(CONFIG_NAME, configs))
    sizes = {c.label: folders[c.label].sizes() for c in catalogs if c.label in folders}
    for name in _BY_KEY:
        parsed = {label: _read_config(folders[label], name, sizes[label], label) for label in sizes}
        lines.extend(_key_differences(name, parsed))
    for name in _BY_CONTENT:
        seen = {label: _fingerprint(folders[label], name, sizes[label]) for label in sizes}
        if len(set(seen.values())) > 1:
            lines.append(f"{name}: {_shown(seen)}")
    return tuple(lines)


def _read_config(
    folder: Folder, name: str, sizes: Mapping[str, int], label: str
) -> Mapping[str, Any]:
    if name not in sizes:
        return {}
    return parse_config(folder.read(name, 0, sizes[name]), file=name, source=label)


def _fingerprint(folder: Folder, name: str, sizes: Mapping[str, int]) -> str:
    if name not in sizes:
        return _ABSENT
    size_bytes = sizes[name]
    if size_bytes > _MAX_HASHED_BYTES:
        return f"{size_bytes} bytes"
    digest = hashlib.sha256(folder.read(name, 0, size_bytes)).hexdigest()
    return f"{size_bytes} bytes, sha256 {digest[:8]}"


def _key_differences(file: str, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    flat = {label: dict(_flatten(config)) for label, config in configs.items()}
    for key in sorted({key for keys in flat.values() for key in keys}):
        said = {label: keys.get(key, _ABSENT) for label, keys in flat.items()}
        if len(set(said.values())) > 1:
            yield f"{file}: {key} is {_shown(said)}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves as `rope_parameters.rope_theta` and their JSON; lists are leaves."""
    for key, value in config.items():
        if key in _BOOKKEEPING:
            continue
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)


def _shown(said: Mapping[str, str]) -> str:
    """`500000 (a, b), 10000 (c)`: each answer once, with who gave it."""
    labels: dict[str, list[str]] = {}
    for label, value in said.items():
        labels.setdefault(value, []).append(label)
    return ", ".join(f"{_short(value)} ({', '.join(who)})" for value, who in labels.items())


def _short(value: str) -> str:
    return value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "..."
