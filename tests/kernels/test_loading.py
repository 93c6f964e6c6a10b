"""How a kernel is loaded: as little of numba and SciPy as it takes, and all of both for others."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOAD = """
import sys
import numpy as np
from raymerge.kernels.sha256 import PairedHash

both = PairedHash()
both.update(np.arange(100, dtype=np.uint8))
print(both.hexdigest(0)[:8], "scipy.linalg" in sys.modules, "numba.typed.typedlist" in sys.modules)
"""
DOT = """
import numba
from numba.np import arraymath, linalg

assert arraymath.ensure_blas is linalg.ensure_blas
dot = numba.njit(lambda a, b: np.dot(a, b))
print(dot(np.eye(3), np.full(3, 2.0)).tolist(), numba.njit(lambda a: np.cov(a))(np.eye(2)).tolist())
"""


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_compiled_kernel_loads_without_scipy_and_what_only_compiling_needs() -> None:
    printed(LOAD)  # which compiles it, unless some test has
    assert printed(LOAD) == "bce0aff1 False False"


def test_other_code_of_the_process_has_numba_and_blas_whole() -> None:
    pytest.importorskip("scipy")
    assert printed(LOAD + DOT).splitlines()[1] == "[2.0, 2.0, 2.0] [[0.5, -0.5], [-0.5, 0.5]]"
