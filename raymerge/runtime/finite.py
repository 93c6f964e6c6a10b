"""Find the NaN or Inf that a kernel reported, and name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import NonFiniteError
from raymerge.kernels.tile import ALL_FINITE, Bytes, Tile
from raymerge.plan.graph import Input, PlannedSource, TensorNode

BF16_EXPONENT = 0x7F80
_FLOATS = {DType.F16: np.float16, DType.F32: np.float32, DType.F64: np.float64}


def is_finite(piece: Bytes, dtype: DType) -> npt.NDArray[np.bool_]:
    """Which elements of `piece` are neither NaN nor Inf."""
    finite: npt.NDArray[np.bool_]
    if dtype is DType.BF16:
        finite = (piece.view(np.uint16) & BF16_EXPONENT) != BF16_EXPONENT
    else:
        finite = np.isfinite(piece.view(_FLOATS[dtype]))
    return finite


@contextmanager
def in_stage(name: str | None) -> Iterator[None]:
    """Say in which stage inside a recipe a NaN or an Inf was met; None is the one written."""
    try:
        yield
    except NonFiniteError as error:
        if name is None:
            raise
        raise NonFiniteError(
            f"stage {name}: {error.message}",
            source=error.source,
            tensor=error.tensor,
            file=error.file,
        ) from error


def check_finite(
    node: TensorNode,
    tile: Tile,
    bad: int,
    out: Bytes | None,
    *,
    sources: Sequence[PlannedSource],
    pass_through: bool,
) -> None:
    """Raise for what a kernel reported about a tile.

    Args:
        node: The tensor.
        tile: Its inputs.
        bad: What the kernel returned.
        out: The merged tile, if there is one yet.
        sources: The plan's.
        pass_through: The recipe accepts NaN and Inf of a source; a finite value that leaves the
            output's range is an error all the same.
    """
    if bad == ALL_FINITE:
        return
    if not pass_through and bad < len(node.inputs):
        finite = is_finite(tile.buffers[bad], tile.dtypes[bad])
        if finite.all():
            raise _beyond_float32(node, node.inputs[bad], tile, bad, sources)
        refuse(node, node.inputs[bad], tile.first + int(np.argmin(finite)), sources=sources)
    if out is None:
        return
    overflow = ~is_finite(out, node.slot.dtype)
    for buffer, dtype in zip(tile.buffers, tile.dtypes, strict=True):
        overflow &= is_finite(buffer, dtype)
    if overflow.any():
        raise NonFiniteError(
            f"{node.slot.name}: element {tile.first + int(np.argmax(overflow))} of the result is "
            f"beyond the range of {node.slot.dtype.torch_name}, and every source is finite there. "
            "Write a wider dtype, or smaller weights.",
            tensor=node.slot.name,
        )


def _beyond_float32(
    node: TensorNode, read: Input, tile: Tile, position: int, sources: Sequence[PlannedSource]
) -> NonFiniteError:
    """A float64 that arithmetic cannot hold."""
    values = np.abs(tile.buffers[position].view(np.float64))
    index = tile.first + int(np.argmax(values > np.finfo(np.float32).max))
    label = sources[read.source].label
    return NonFiniteError(
        f"{label}: element {index} of {read.name} is beyond the range of float32, in which "
        f"arithmetic is done ({read.file})",
        source=label,
        tensor=node.slot.name,
        file=read.file,
    )


def refuse(
    node: TensorNode, read: Input, index: int, *, sources: Sequence[PlannedSource]
) -> NoReturn:
    """Raise for element `index` of an input."""
    label = sources[read.source].label
    raise NonFiniteError(
        f"{label}: {read.name} holds a NaN or Inf at element {index} ({read.file}). "
        "`nan: pass` in the recipe lets it through.",
        source=label,
        tensor=node.slot.name,
        file=read.file,
    )
