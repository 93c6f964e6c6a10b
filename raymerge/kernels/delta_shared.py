"""Delta passes of several merges over the same inputs: what they have in common, found out once.

A row is what a selector keeps of a source, a mix what weights, election and mean make of a row for
each source. Merges that ask for the same have the same row, or the same mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from raymerge.kernels.tile import DeltaPass, Ranked, Selectors


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaTrials:
    """The figures of several delta passes, as one kernel takes them; see `delta_trials.py`.

    Selectors are carried from tile to tile: it is for one sweep.
    """

    passes: tuple[DeltaPass, ...]
    """Of the merges, each with selectors of its own."""
    sources: npt.NDArray[np.int64]
    """The input that each row is of; those of one input are neighbours."""
    selectors: Selectors
    """Of the rows."""
    ranked: Ranked | None
    """Of the rows, where any is drawn by rank."""
    rows: npt.NDArray[np.int64]
    """`(mixes, sources)`: which row each source of a mix has."""
    shares: npt.NDArray[np.float32]
    """`(mixes, sources)`."""
    weights: npt.NDArray[np.float32]
    """`(mixes, sources)`."""
    ways: npt.NDArray[np.bool_]
    """`(mixes, 2)`: elect, normalize."""
    order: tuple[int, ...]
    """Merges in the order in which the kernel has them: those of one mix are neighbours."""
    mixes: npt.NDArray[np.int64]
    """The mix of each, in that order."""
    scales: npt.NDArray[np.float32]
    """The scale of each, in that order."""


def delta_trials(passes: Sequence[DeltaPass]) -> DeltaTrials:
    """Passes over the same inputs, none of which has begun."""
    own = tuple(replace(one, selectors=one.selectors.copy()) for one in passes)
    rows, firsts = _rows(own)
    mixes: dict[object, int] = {}
    mix_of = [
        mixes.setdefault(_mix(one, of), len(mixes)) for one, of in zip(own, rows, strict=True)
    ]
    leads = [mix_of.index(mix) for mix in range(len(mixes))]
    order = tuple(sorted(range(len(own)), key=mix_of.__getitem__))
    return DeltaTrials(
        passes=own,
        sources=np.array([source + 1 for _, source in firsts], np.int64),
        selectors=np.stack([own[lead].selectors[source] for lead, source in firsts]),
        ranked=_ranked(own, firsts),
        rows=np.array([rows[lead] for lead in leads], np.int64),
        shares=np.stack([own[lead].shares for lead in leads]),
        weights=np.stack([own[lead].weights for lead in leads]),
        ways=np.array([(own[lead].elect, own[lead].normalize) for lead in leads], np.bool_),
        order=order,
        mixes=np.array([mix_of[position] for position in order], np.int64),
        scales=np.array([own[position].scale for position in order], np.float32),
    )


def _rows(passes: Sequence[DeltaPass]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The row that each merge has of each source; and of each row a merge and a source."""
    found: dict[object, int] = {}
    firsts: list[tuple[int, int]] = []
    rows: list[list[int]] = [[] for _ in passes]
    for source in range(len(passes[0].shares)):
        for position, one in enumerate(passes):
            key = source, one.selectors[source].tobytes(), _ranks(one, source)
            if key not in found:
                found[key] = len(firsts)
                firsts.append((position, source))
            rows[position].append(found[key])
    return rows, firsts


def _ranks(one: DeltaPass, source: int) -> object:
    if one.ranked is None:
        return None
    return one.ranked.limits[source].tobytes(), one.ranked.factors[source].tobytes()


def _mix(one: DeltaPass, rows: Sequence[int]) -> object:
    """Equal for merges whose mixed entries are equal."""
    return tuple(rows), one.shares.tobytes(), one.weights.tobytes(), one.elect, one.normalize


def _ranked(passes: Sequence[DeltaPass], firsts: Sequence[tuple[int, int]]) -> Ranked | None:
    known = [one.ranked for one in passes if one.ranked is not None]
    if not known:
        return None
    # A row that is not drawn by rank has any figures: they are not looked at.
    each = [(passes[lead].ranked or known[0], source) for lead, source in firsts]
    return Ranked(
        rows=known[0].rows,
        limits=np.stack([ranked.limits[source] for ranked, source in each]),
        factors=np.stack([ranked.factors[source] for ranked, source in each]),
    )
