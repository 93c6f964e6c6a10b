"""The kernels of free methods, by the names that their rules call them by.

A reduction takes addresses, codes, first and count of a tile, then the rule's figures; a last pass
takes the output's address and code after them. `torch_free.py` defines the same names in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raymerge.kernels import fusion, importance, nearswap, ram, sce

FREE_KERNELS: dict[str, Callable[..., Any]] = {
    "nearswap": nearswap.nearswap_tile,
    "ram": ram.ram_tile,
    "ram.count": ram.ram_count,
    "sce": sce.sce_tile,
    "sce.energies": sce.sce_energies,
    "spread.high": sce.spread_high,
    "spread.low": sce.spread_low,
    "fusion": importance.fusion_tile,
    "fusion.peaks": fusion.fusion_peaks,
    "fusion.rows": fusion.fusion_rows,
    "fusion.sums": fusion.fusion_sums,
    "fusion.divergence": fusion.fusion_divergence,
    "importance.high": importance.importance_high,
    "importance.low": importance.importance_low,
}
