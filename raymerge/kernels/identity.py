"""Which kernels these are: the name of their compiled code, and of what a run was made with."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def kernel_hash() -> str:
    """Hash of the kernel sources and of numba's version, 16 hex digits. Does not load numba."""
    digest = hashlib.sha256(version("numba").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
