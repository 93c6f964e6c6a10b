"""Where a config gives the number of layers of a stack, or would if it were not left to its class.

A model of several stacks has a section or a key for each: which is about which is told by names and
by the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymerge.checkpoint.ties import config_sections

Path = tuple[str, ...]
"""Keys that lead to a section of a config, none to the config itself."""

COUNT = "num_hidden_layers"
"""What transformers calls the number in any config, whatever name its class has for it."""
_COUNTS = (
    COUNT,
    "num_layers",
    "n_layer",
    "n_layers",
    "depth",
    "num_transformer_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
EXTRA = "num_nextn_predict_layers"
"""Layers that predict further tokens, stored behind the last one and not counted."""
_KINDS = {"vision": ("vision", "visual", "vit", "image"), "audio": ("audio", "speech")}


def said_counts(config: Mapping[str, Any], stack: str, depth: int) -> dict[Path, list[str]]:
    """Keys that give the number of layers, by the section of the config they stand in."""
    found = {}
    for path, section in _sections(config):
        keys = [
            key
            for key in _COUNTS
            if type(section.get(key)) is int and depth - section[key] in (0, num_extra(section))
        ]
        if keys := _of_side(keys, stack):
            found[path] = keys
    kind = _kind(stack)
    alike = {path: keys for path, keys in found.items() if _kind(".".join(path)) == kind}
    # A vision model's own config does not call itself one. A language model's part does.
    alone = len(found) == 1 and (kind != "text" or len(config_sections(config)) == 1)
    return alike or (found if alone else {})


def contradicted(config: Mapping[str, Any], stack: str) -> bool:
    """Whether the config gives another number, or several and not which is of which stack."""
    kind = _kind(stack)
    return any(
        _of_side([key for key in _COUNTS if key in section], stack)
        for path, section in _sections(config)
        if not path or _kind(".".join(path)) == kind
    )


def describing(config: Mapping[str, Any], stack: str) -> Path | None:
    """The section of the config that is about the stack, if that is clear."""
    kind = _kind(stack)
    texts = config_sections(config)
    if side_of(stack) and _has_two_sides(config):
        return None
    found = [
        path
        for path, section in _sections(config)
        if path
        and _kind(path[-1]) == kind
        and (kind != "text" or any(section is text for text in texts))
    ]
    inner = [one for one in found if not any(p != one and p[: len(one)] == one for p in found)]
    if not inner and (kind == "text" or len(texts) == 1):
        return ()
    return inner[0] if len(inner) == 1 else None


def _sections(
    config: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The config and every mapping in it."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _sections(value, (*path, key))


def section_at(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The section at `path`, empty where there is none."""
    for key in path:
        inner = config.get(key)
        config = inner if isinstance(inner, dict) else {}
    return config


def num_extra(section: Mapping[str, Any]) -> int:
    """Prediction layers that the section counts by themselves."""
    number = section.get(EXTRA)
    return number if isinstance(number, int) else 0


def side_of(stack: str) -> str:
    """`encoder` or `decoder` of a model that may have both."""
    components = stack.split(".")
    return next((one for one in ("decoder", "encoder") if one in components), "")


def _of_side(keys: Sequence[str], stack: str) -> list[str]:
    """Of the keys of a model with two sides those of the stack's."""
    own = side_of(stack)
    sided = [key for key in keys if own and own in key]
    plain = [key for key in keys if "coder" not in key]
    if own == "decoder" and sided:
        return sided
    # BART repeats its encoder's number as num_hidden_layers.
    return [*sided, *plain]


def _has_two_sides(config: Mapping[str, Any]) -> bool:
    """Whether a config is of an encoder and a decoder, with a number of layers each."""
    sided = any(key in config for key in _COUNTS if "coder" in key)
    return sided or config.get("is_encoder_decoder") is True


def _kind(text: str) -> str:
    """Of what a stack or a section is about: `vision`, `audio` or `text`."""
    lower = text.lower()
    kinds = (kind for kind, words in _KINDS.items() if any(word in lower for word in words))
    return next(kinds, "text")
