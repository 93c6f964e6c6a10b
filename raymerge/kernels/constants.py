"""Sizes that planning shares with the kernels, without loading numba."""

from __future__ import annotations

LANES = 256
"""Sums run in this many lanes, and tiles begin at multiples of it."""
BLOCK = 2048
"""Elements a fused kernel works on at a time: its float32 scratch stays in the L2 cache."""
HIGH_BINS = 2**15
LOW_BINS = 2**16
LOW_COLUMNS = LOW_BINS + 1
"""Counts inside a high bin, and in the last column of what lies above it."""
STRIPES = 4
"""Neighbours count into different stripes: equal neighbours would wait for each other's store."""
ROW_LANES = 32
"""Sums over a row run in this many lanes."""
