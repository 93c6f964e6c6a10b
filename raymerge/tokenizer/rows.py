"""Which rows of which sources a row of the output's embedding is made of, for every source.

For a token of the output each source uses, in this order:

1. its own row, if it has the token and the recipe does not force another;
2. the row that the recipe names, or zeros if it says so;
3. the row of the only source that has the token;
4. the base's row;
5. zeros, if no source has it;
6. the mean of the rows of all sources that have it.

A row without a token is padding: a source uses its own padding row there, else the donor's.

A table has a row per row of the output and a column per source, with the row of that source that
takes part or `NONE`. Several in one line are averaged, none is zeros, and `MEAN` in the first
column is the mean of all rows that have a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int32]
Column = npt.NDArray[np.int32]
NONE, MEAN = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a recipe says of a token, worked out to a row."""

    source: int | None
    """Position of the source; None leaves it to the rule."""
    row: int
    """Its row; `NONE` is zeros."""
    force: bool
    zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The tables of all sources, and what a reader wants to know of them."""

    tables: tuple[Table, ...]
    lacked: tuple[int, ...]
    """Tokens of the output that each source has no row of its own for."""
    unknown: tuple[str, ...]
    """Tokens that no source has, and of which nothing is given: their rows are zeros."""


def row_tables(
    tokens: Sequence[str | None],
    sources: Sequence[Mapping[str, int]],
    sizes: Sequence[int],
    *,
    base: int,
    donor: int | None,
    given: Mapping[str, Given],
    mean_padding: bool,
) -> Rows:
    """Work out where every source takes every row of the output from.

    Args:
        tokens: The output's, by row; None is padding.
        sources: Rows by token of every source, in recipe order.
        sizes: Rows of every source's embedding.
        base: Position of the source whose row fills in for others.
        donor: Position of the source whose padding rows are kept; None where it is not among them.
        given: What the recipe says, by token.
        mean_padding: Padding is the mean of all rows that have a token.
    """
    own = np.stack([_own(tokens, ids) for ids in sources], axis=1)
    filled = _default(own, base)
    forced = np.zeros(len(tokens), bool)
    rows = {token: row for row, token in enumerate(tokens)}
    for token, rule in given.items():
        row = rows[token]
        forced[row] = rule.force
        if rule.zero or rule.source is not None:
            filled[row] = NONE
        if rule.source is not None:
            filled[row, rule.source] = rule.row
    padding = np.array([token is None for token in tokens], bool)
    tables = []
    for position in range(len(sources)):
        table = filled.copy()
        has = (own[:, position] != NONE) & ~forced
        table[has] = NONE
        table[has, position] = own[has, position]
        _pad(table, padding, position, sources, sizes, donor=donor, mean=mean_padding)
        tables.append(table)
    lacked = tuple(int(np.sum((own[:, s] == NONE) & ~padding)) for s in range(len(sources)))
    nowhere = np.flatnonzero((own == NONE).all(axis=1) & ~padding)
    settled = {token for token, rule in given.items() if rule.zero or rule.source is not None}
    lacking = (tokens[row] for row in nowhere.tolist())
    return Rows(
        tables=tuple(tables),
        lacked=lacked,
        unknown=tuple(token for token in lacking if token and token not in settled),
    )


def is_identity(table: Table, position: int, size: int) -> bool:
    """Whether a source's embedding of `size` rows stays as it is."""
    if len(table) != size:
        return False
    expected = np.full_like(table, NONE)
    expected[:, position] = np.arange(size)
    return np.array_equal(table, expected)


def has_means(table: Table) -> bool:
    """Whether any row is a mean of several."""
    return bool(((table != NONE).sum(axis=1) > 1).any() or (table == MEAN).any())


def runs_of(table: Table) -> tuple[tuple[int, int], ...]:
    """First row and number of rows of every stretch in which all columns count up together."""
    if not len(table):
        return ()
    before, after = table[:-1], table[1:]
    goes_on = ((after == before + 1) & (before >= 0)) | ((after < 0) & (after == before))
    starts = np.concatenate([[0], 1 + np.flatnonzero(~goes_on.all(axis=1))])
    counts = np.diff(np.append(starts, len(table)))
    return tuple(zip(starts.tolist(), counts.tolist(), strict=True))


def _own(tokens: Sequence[str | None], ids: Mapping[str, int]) -> Column:
    found = (NONE if token is None else ids.get(token, NONE) for token in tokens)
    return np.fromiter(found, np.int32, len(tokens))


def _default(own: Table, base: int) -> Table:
    """Rules 3 to 6: as a row of all who have it, but for the base's alone where it is one."""
    filled = own.copy()
    of_base = own[:, base] != NONE
    filled[of_base] = NONE
    filled[of_base, base] = own[of_base, base]
    return filled


def _pad(
    table: Table,
    padding: npt.NDArray[np.bool_],
    position: int,
    sources: Sequence[Mapping[str, int]],
    sizes: Sequence[int],
    *,
    donor: int | None,
    mean: bool,
) -> None:
    rows = np.flatnonzero(padding)
    table[rows] = NONE
    if mean:
        table[rows, 0] = MEAN
        return
    for source in (position,) if donor is None else (donor, position):
        free = np.ones(max(sizes[source], len(table)), bool)
        free[sizes[source] :] = False
        free[np.fromiter(sources[source].values(), np.int64, len(sources[source]))] = False
        kept = rows[free[rows]]
        table[kept] = NONE
        table[kept, source] = kept
