"""What each source holds, as the merge sees it.

A view begins as the stored tensors of a catalog. Whatever stands between a file and the tensor that
is merged (an adapter to add, codes to widen, rows to put in another order) replaces stored tensors
by `Derived` ones under the names and shapes that the merge is about, and drops the tensors that
only served to work them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymerge.checkpoint.catalog import Catalog
from raymerge.plan.graph import Input, Read


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A source as the merge sees it."""

    label: str
    config: Mapping[str, Any]
    """Its config.json."""
    tensors: Mapping[str, Input]
    """In the order of file names, then of bytes."""


def views(catalogs: Sequence[Catalog]) -> list[View]:
    """Every source as the merge sees it, in the order of the catalogs."""
    return [
        View(
            label=catalog.label,
            config=catalog.config,
            tensors={name: Read(position, entry) for name, entry in catalog.tensors.items()},
        )
        for position, catalog in enumerate(catalogs)
    ]
