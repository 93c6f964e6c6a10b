"""FP8 checkpoints that can be undone exactly: a weight is its code times a stored scale.

    fp8                  X.weight (codes), X.weight_scale_inv: one scale for each block of 128 x 128
    compressed-tensors   X.weight (codes), X.weight_scale: one for the tensor, a row or a block
    fbgemm_fp8           the same, one for a row

What stands beside them for activations (`input_scale`, the scales of a key-value cache) belongs to
running in FP8 and says nothing of the weights. Every other scheme stays refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import OUTPUT_DTYPES, DType
from raymerge.checkpoint.header import TensorEntry
from raymerge.checkpoint.quantised import CONFIG_KEYS
from raymerge.checkpoint.ties import config_sections
from raymerge.errors import SourceError

CODES = frozenset({DType.F8_E4M3, DType.F8_E5M2})
_SCALE_DTYPES = frozenset({DType.F32, DType.BF16, DType.F16, DType.F8_E8M0})
_SUFFIXES = ("_scale_inv", "_scale")
_FOR_ACTIVATIONS = ("input_scale", "activation_scale", "output_scale", "k_scale", "v_scale")
_METHODS = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors"})
_USUAL_BLOCK = (128, 128)
_MATRIX = 2


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which scale belongs to an entry of a matrix, or of a stack of matrices of one size."""

    rows: int
    """Of one matrix."""
    columns: int
    block_rows: int
    block_columns: int

    @property
    def grid(self) -> tuple[int, int]:
        """Scales of one matrix, by rows and columns of blocks."""
        return -(-self.rows // self.block_rows), -(-self.columns // self.block_columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A tensor of codes, its scales, and how the two lie on each other."""

    scale: TensorEntry
    blocks: Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledCodes:
    """A source in FP8 that can be undone."""

    weights: Mapping[str, Scaled]
    """By the name of the tensor of codes."""
    served: frozenset[str]
    """Tensors that mean nothing without the codes."""
    dtype: DType
    """What the weights were: the config's precision, else bfloat16."""


def scaled_codes(catalog: Catalog) -> ScaledCodes | None:
    """How to undo a source's codes, or None where it has none or they are of another scheme.

    Raises:
        SourceError: A scale fits its weight in no way.
    """
    coded = {name: e for name, e in catalog.tensors.items() if e.dtype.startswith(("F8_", "F4"))}
    scales = {entry.name for name in coded if (entry := _scale_of(name, catalog))}
    weights = {name: entry for name, entry in coded.items() if name not in scales}
    if not weights or not all(_is_undoable(n, e, catalog) for n, e in weights.items()):
        return None
    settings = _settings(catalog.config)
    if any(_refuses(found) for found in settings):
        return None
    found = {name: _scaled(name, entry, catalog, settings) for name, entry in weights.items()}
    served = {scaled.scale.name for scaled in found.values()}
    served |= {name for name in catalog.tensors if name.endswith(_FOR_ACTIVATIONS)}
    return ScaledCodes(weights=found, served=frozenset(served), dtype=_precision(catalog.config))


def _scale_of(name: str, catalog: Catalog) -> TensorEntry | None:
    found = (catalog.tensors.get(name + suffix) for suffix in _SUFFIXES)
    return next((entry for entry in found if entry is not None), None)


def _is_undoable(name: str, entry: TensorEntry, catalog: Catalog) -> bool:
    scale = _scale_of(name, catalog)
    return entry.dtype in CODES and scale is not None and scale.dtype in _SCALE_DTYPES


def _settings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        section[key]
        for section in config_sections(config)
        for key in CONFIG_KEYS
        if isinstance(section.get(key), dict) and section[key]
    ]


def _refuses(settings: Mapping[str, Any]) -> bool:
    """Whether a config says that the codes are of a scheme with more to it than a scale."""
    method = settings.get("quant_method")
    groups = settings.get("config_groups") or {}
    kinds = [group.get("weights") or {} for group in groups.values() if isinstance(group, dict)]
    return (method is not None and method not in _METHODS) or any(
        kind.get("type", "float") != "float" or kind.get("num_bits", 8) != 8  # noqa: PLR2004
        for kind in kinds
    )


def _scaled(
    name: str, entry: TensorEntry, catalog: Catalog, settings: list[Mapping[str, Any]]
) -> Scaled:
    scale = _scale_of(name, catalog)
    assert scale is not None, name
    *_, rows, columns = (1, 1, *entry.shape)
    for block_rows, block_columns in (
        (rows, columns),
        (1, columns),
        *_block_sizes(settings),
        _USUAL_BLOCK,
    ):
        blocks = Blocks(rows, columns, block_rows, block_columns)
        stacked = prod(entry.shape[:-_MATRIX])
        if prod(scale.shape) == stacked * prod(blocks.grid) and _lies(scale, entry, blocks):
            return Scaled(scale=scale, blocks=blocks)
    raise SourceError(
        f"{catalog.label}: {scale.name} of shape {list(scale.shape)} fits {name} of shape "
        f"{list(entry.shape)} neither as one scale, nor one a row, nor one a block of the "
        "config's weight_block_size; the checkpoint is damaged or of a scheme that is not known",
        source=catalog.label,
        tensor=scale.name,
        file=scale.file,
    )


def _lies(scale: TensorEntry, entry: TensorEntry, blocks: Blocks) -> bool:
    """Whether the scale's shape is the grid of blocks, sizes of 1 aside."""
    wanted = (*entry.shape[:-_MATRIX], *blocks.grid)
    return [size for size in scale.shape if size > 1] == [size for size in wanted if size > 1]


def _block_sizes(settings: list[Mapping[str, Any]]) -> list[tuple[int, int]]:
    named = [found.get("weight_block_size") for found in settings]
    groups = [group for found in settings for group in (found.get("config_groups") or {}).values()]
    named += [
        (group.get("weights") or {}).get("block_structure")
        for group in groups
        if isinstance(group, dict)
    ]
    return [
        (size[0], size[1])
        for size in named
        if isinstance(size, list)
        and len(size) == _MATRIX
        and all(isinstance(edge, int) and edge > 0 for edge in size)
    ]


def _precision(config: Mapping[str, Any]) -> DType:
    for section in config_sections(config):
        for key in ("dtype", "torch_dtype"):
            said = section.get(key)
            found = (
                OUTPUT_DTYPES.get(said.removeprefix("torch.")) if isinstance(said, str) else None
            )
            if found is not None and found is not DType.F64:
                return found
    return DType.BF16
