"""The numba decorator all CPU kernels share, and where their machine code is kept.

numba keys its cache by the file of the outer function only, so a change in a function it inlines
from another file would go unseen. The cache folder is therefore named by a hash of all kernel
sources. It lies in NUMBA_CACHE_DIR, else in the user's cache, else in the temporary folder; where
none can be written, kernels are compiled by each process, with one warning.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

from raymerge.kernels.identity import kernel_hash

_KNOWN_NUMBA = "0.68."


def _cache_folders() -> list[Path]:
    """Where compiled kernels may be kept, the best first."""
    named = f"kernels-{kernel_hash()}"
    given = os.environ.get("NUMBA_CACHE_DIR")
    folders = [Path(given) / named] if given else []
    with suppress(RuntimeError):  # no HOME and no such user, as in a container run under a number
        cached = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(cached) / "raymerge" / named)
    with suppress(OSError):  # no temporary folder is writable
        # One level deep: another user could swap what lies in a folder that is theirs.
        folders.append(Path(tempfile.gettempdir()) / f"raymerge-{os.getuid()}-{named}")
    return folders


@cache
def _keeps_cache() -> bool:
    """Point numba at a writable cache folder; False if there is none."""
    candidates = _cache_folders()
    for kernels in candidates:
        try:
            kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Another user's folder of that name in /tmp would hold code that we then run.
            if kernels.stat().st_uid == os.getuid() and os.access(kernels, os.W_OK):
                numba.config.CACHE_DIR = str(kernels)
                return True
        except OSError:
            continue
    warnings.warn(
        f"no folder for compiled kernels is writable ({', '.join(map(str, candidates))}); every "
        "process compiles them anew. Set NUMBA_CACHE_DIR to a writable folder.",
        stacklevel=2,
    )
    return False


def _compiled(function: Callable[..., Any]) -> Any:
    # No fastmath and no fused multiply-add: the bytes are a contract. No threads of numba's own:
    # threads belong to the runtime.
    options = {"nogil": True, "cache": _keeps_cache(), "error_model": "numpy", "boundscheck": False}
    return numba.njit(**options)(function)


def _leave_scipy_out() -> None:
    """Load numba's array functions without SciPy, whose BLAS no kernel calls.

    numba imports `scipy.linalg` only to see whether it is there, which takes as long as everything
    else of a kernel's loading. Whoever compiles a call of BLAS in this process finds it as ever.
    """
    if "numba.np.arraymath" in sys.modules:
        return
    from numba.np import linalg

    look = linalg.ensure_blas

    def look_for_scipy() -> None:
        if find_spec("scipy") is None:
            raise ImportError("scipy")

    linalg.ensure_blas = look_for_scipy
    try:
        from numba.np import arraymath

        arraymath.ensure_blas = look
    finally:
        linalg.ensure_blas = look


def _is_loaded(dispatcher: Any, signature: str) -> bool:
    """Load what an earlier process has compiled, if it is there.

    `Dispatcher.compile` does it too, and before that registers all that could be compiled. This
    does not, and is for the version whose insides it was written for.
    """
    if not (_keeps_cache() and numba.__version__.startswith(_KNOWN_NUMBA)):
        return False
    from numba.core.runtime import rtsys

    rtsys.initialize(dispatcher.targetctx)
    found = dispatcher._cache._load_overload(signature, dispatcher.targetctx)  # noqa: SLF001
    if found is not None:
        dispatcher.add_overload(found)
    return found is not None


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function to machine code that releases the GIL, at its first call.

    Not before: a merge calls two or three of the kernels, and loading one takes 10 ms.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @cache
        def load() -> Any:
            dispatcher = _compiled(function)
            with global_compiler_lock:
                _leave_scipy_out()
                if not _is_loaded(dispatcher, signature):
                    dispatcher.compile(signature)
            dispatcher.disable_compile()
            return dispatcher

        @wraps(function)
        def call(*args: Any) -> Any:
            return load()(*args)

        return call

    return decorate


def part(function: Callable[..., Any]) -> Any:
    """Let kernels call a function: it is compiled into each, for the types it is called with."""
    return _compiled(function)
