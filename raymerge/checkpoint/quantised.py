"""Recognise quantised checkpoints, whose codes are not weights and must not be merged as such.

Three signs, any of which is enough: the tensors a scheme puts beside its codes, the element types,
and what the config says. A stale `quantization_config` beside plain weights counts: loaders
believe it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.ties import config_sections

# Scheme by the last components of names that occur together; the first line that fits counts.
_SCHEMES = (
    ("GPTQ", ("qweight", "g_idx")),
    ("GPTQ or AWQ", ("qweight", "qzeros")),
    ("compressed-tensors", ("weight_packed",)),
    ("block FP8", ("weight_scale_inv",)),
    ("bitsandbytes 8-bit", ("SCB",)),
    ("bitsandbytes 4-bit", ("quant_state",)),
    ("bitsandbytes 4-bit", ("quant_map", "absmax")),
    ("MXFP4", ("blocks", "scales")),
    ("scaled codes", ("weight_scale",)),
    ("packed codes", ("qweight",)),
)
_TELLING = frozenset(part for _, parts in _SCHEMES for part in parts)
_CODES = tuple(dtype for dtype in DType if dtype.startswith(("F8_", "F6_", "F4")))
_CODES_SET = frozenset(_CODES)
CONFIG_KEYS = ("quantization_config", "compression_config")


def quantisation(catalog: Catalog) -> str | None:
    """A phrase that names the scheme and where it was seen, or None for plain weights."""
    signs = _signs(catalog)
    return _by_siblings(signs, catalog) or _by_dtype(signs) or _by_config(catalog.config)


def _signs(catalog: Catalog) -> dict[str, str]:
    """First tensor that shows each sign: a telling last component, or the element type of codes."""
    signs: dict[str, str] = {}
    for name, entry in catalog.tensors.items():
        last = name[name.rfind(".") + 1 :]
        if last.endswith(("_blocks", "_scales")):
            last = last[-len("blocks") :]
        elif ".quant_state." in name:
            last = "quant_state"
        if last in _TELLING:
            signs.setdefault(last, name)
        if entry.dtype in _CODES_SET:
            signs.setdefault(entry.dtype, name)
    return signs


def _by_siblings(signs: Mapping[str, str], catalog: Catalog) -> str | None:
    for scheme, parts in _SCHEMES:
        if all(part in signs for part in parts):
            # GPTQ without act-order and AWQ name their tensors alike; the config knows which it is.
            told = _config_method(catalog.config) if " or " in scheme else None
            beside = f" with {', '.join(parts[1:])}" if parts[1:] else ""
            return f"{(told or '').upper() or scheme} ({signs[parts[0]]}{beside})"
    return None


def _by_dtype(signs: Mapping[str, str]) -> str | None:
    return next((f"{dtype} codes ({signs[dtype]})" for dtype in _CODES if dtype in signs), None)


def _by_config(config: Mapping[str, Any]) -> str | None:
    for key, settings in _settings(config):
        return f"{key} in config.json says {_method(settings) or 'quantised'}"
    return None


def _config_method(config: Mapping[str, Any]) -> str | None:
    return next((method for _, found in _settings(config) if (method := _method(found))), None)


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method") or settings.get("format")
    return str(method) if method else None


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (key, section[key])
        for section in config_sections(config)
        for key in CONFIG_KEYS
        if isinstance(section.get(key), dict) and section[key]
    ]
