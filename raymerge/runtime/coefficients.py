"""From Gram matrices to the coefficients of a span pass, once a tensor's inner products are in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raymerge.errors import RaymergeError
from raymerge.kernels.groups import GroupSums
from raymerge.methods import methods
from raymerge.methods.registry import Coefficients, Gram
from raymerge.plan.graph import SpanStep, TensorNode
from raymerge.plan.steps import arguments

MATRIX_ENTRIES = 2**16
"""Entries of the Gram matrices that a method is given at once: half a MiB, and what it makes of
them on the way is not much more."""


def tensor_coefficients(node: TensorNode, step: SpanStep, gram: Gram) -> Coefficients:
    """One coefficient per vector.

    Raises:
        RaymergeError: The method finds no direction in what the sources hold.
    """
    function = methods()[step.method].function
    try:
        found: Coefficients = function(gram, **arguments(step.knobs))
    except ValueError as error:
        name = node.slot.name
        raise RaymergeError(f"{step.method} on {name}: {error}", tensor=name) from error
    return found


def group_coefficients(
    node: TensorNode, step: SpanStep, sums: GroupSums
) -> npt.NDArray[np.float32]:
    """Coefficients of every row or column, `(vectors, groups)`."""
    vectors = len(node.inputs) - step.relative
    count = node.groups.count
    rounded = np.empty((vectors, count), np.float32)
    at_once = max(1, MATRIX_ENTRIES // vectors**2)
    for start in range(0, count, at_once):
        stop = min(count, start + at_once)
        found = tensor_coefficients(node, step, sums.grams(vectors, start, stop))
        for row, values in zip(rounded, found, strict=True):
            row[start:stop] = values
    return rounded
