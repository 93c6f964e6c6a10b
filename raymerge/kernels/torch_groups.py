"""torch's sums and coefficients of rows and columns: what `grouped.py` does, as whole tensors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymerge.kernels.constants import LANES
from raymerge.kernels.groups import Groups, GroupSums
from raymerge.kernels.reduce import REDUCTION_BLOCK


def spread(
    coefficients: npt.NDArray[np.float32], groups: Groups, *, first: int, count: int, like: Tensor
) -> Tensor:
    """The coefficient of each vector at each element of a tile, `(vectors, count)`."""
    index = torch.arange(first, first + count, device=like.device)
    group = index // groups.size if groups.by_row else index % groups.count
    return torch.from_numpy(coefficients).to(like.device)[:, group]


def add_to_groups(sums: GroupSums, terms: Tensor, groups: Groups, *, first: int) -> None:
    """Add float64 `terms`, `(pairs, count)`, the first of them at flat index `first`."""
    add = _add_to_rows if groups.by_row else _add_to_columns
    add(sums, terms, groups, first)


def _add_to_columns(sums: GroupSums, terms: Tensor, groups: Groups, first: int) -> None:
    totals = torch.from_numpy(sums.totals).to(terms.device)
    done, count = 0, terms.shape[1]
    while done < count:
        column = (first + done) % groups.count
        width = min(groups.count - column, count - done)
        totals[:, column : column + width] += terms[:, done : done + width]
        done += width
    sums.totals[:] = totals.cpu().numpy()


def _add_to_rows(sums: GroupSums, terms: Tensor, groups: Groups, first: int) -> None:
    """The end of a row that is begun, whole rows side by side, and the start of another."""
    length, count = groups.size, terms.shape[1]
    begin = min(count, -first % length)
    end = begin + (count - begin) // length * length
    _add_part(sums, terms[:, :begin], length, first)
    if end > begin:
        whole = terms[:, begin:end].reshape(len(terms), -1, length)
        row = (first + begin) // length
        # Short rows leave most lanes 0: without those the sum is the same.
        lanes = min(LANES, 1 << (length - 1).bit_length())
        state = whole.new_zeros((*whole.shape[:2], lanes + 1))
        _add_lanes(state, whole, at=0, length=length)
        sums.totals[:, row : row + whole.shape[1]] = state[..., -1].cpu().numpy()
    _add_part(sums, terms[:, end:], length, first + end)


def _add_part(sums: GroupSums, terms: Tensor, length: int, first: int) -> None:
    """Add what a tile has of one row, and keep the row's sum once it is whole."""
    if not terms.shape[1]:
        return
    row, at = divmod(first, length)
    state = torch.from_numpy(sums.lanes).to(terms.device)
    _add_lanes(state, terms, at=at, length=length)
    sums.lanes[:] = state.cpu().numpy()
    if at + terms.shape[1] == length:
        sums.totals[:, row] = sums.lanes[:, LANES]
        sums.lanes[:] = 0.0


def _add_lanes(state: Tensor, terms: Tensor, *, at: int, length: int) -> None:
    """Add terms from element `at` of their row on to the row's lanes and total."""
    done, count = 0, terms.shape[-1]
    while done < count:
        lane = at % LANES
        width = min(LANES - lane, count - done)
        state[..., lane : lane + width] += terms[..., done : done + width]
        done, at = done + width, at + width
        if at == length or at % REDUCTION_BLOCK == 0:
            _fold(state)


def _fold(state: Tensor) -> None:
    """Fold the lanes in halves and add them to the totals."""
    lanes = state[..., :-1]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    state[..., -1] += lanes[..., 0]
    state[..., :-1] = 0.0
