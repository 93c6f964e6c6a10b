"""FP8 sources: codes are widened by their scales as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.scaled import Blocks, ScaledCodes, scaled_codes
from raymerge.plan.graph import Derived, Input, Read
from raymerge.plan.views import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantised(Derived):
    """A weight that is stored as FP8 codes, `reads[0]`, and their scales, `reads[1]`."""

    blocks: Blocks

    @property
    def how(self) -> str:
        """See `Derived.how`."""
        rows, columns = self.blocks.grid
        kind = self.reads[0].dtype.torch_name
        return f"{kind} x {rows * columns} scales"

    def scratch_bytes(self, tile_elements: int) -> int:
        """The codes of a tile, and all scales as they are stored and as float32."""
        scale = self.reads[1]
        return tile_elements + scale.read_bytes + 4 * scale.num_elements


def dequantised(views: Sequence[View], catalogs: Sequence[Catalog]) -> list[View]:
    """The views with every FP8 weight that can be undone in its former precision."""
    seen = []
    for view, catalog in zip(views, catalogs, strict=True):
        codes = scaled_codes(catalog)
        seen.append(view if codes is None else _undone(view, codes))
    return seen


def _undone(view: View, codes: ScaledCodes) -> View:
    tensors: dict[str, Input] = {}
    for name, stored in view.tensors.items():
        if name in codes.served:
            continue
        tensors[name] = stored
        if name in codes.weights:
            assert isinstance(stored, Read), stored
            scaled = codes.weights[name]
            tensors[name] = Dequantised(
                source=stored.source,
                name=name,
                dtype=codes.dtype,
                shape=stored.shape,
                reads=(stored, Read(stored.source, scaled.scale)),
                blocks=scaled.blocks,
            )
    return replace(view, tensors=tensors)


def dequantised_note(catalog: Catalog) -> str | None:
    """What a reader should know about a source in FP8."""
    codes = scaled_codes(catalog)
    if codes is None:
        return None
    return (
        f"{catalog.label}: {len(codes.weights)} FP8 tensors are widened by their scales to "
        f"{codes.dtype.torch_name}; {len(codes.served)} scales are not written"
    )
