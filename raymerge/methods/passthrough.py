"""One checkpoint, as it is or scaled."""

from __future__ import annotations

from raymerge.methods.registry import Coefficients, Over, PerSource, span_method


@span_method("passthrough", paper="mergekit", over=Over.SOURCES, min_sources=1, max_sources=1)
def passthrough(*, scale: PerSource[float] = (1.0,)) -> Coefficients:
    """Copy the one source, or multiply it by `scale`.

    Args:
        scale: Factor. At 1 a tensor whose dtype stays is copied byte for byte.
    """
    return list(scale)
