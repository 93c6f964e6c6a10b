"""Which row becomes which: tables small enough to check by eye."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from raymerge.plan.remapped import encode, used_columns
from raymerge.tokenizer.rows import MEAN, NONE, Given, is_identity, row_tables, runs_of

BASE = {"a": 0, "b": 1, "c": 2}
SWAPPED = {"b": 0, "a": 1, "x": 2}
LONGER = {"a": 0, "b": 1, "c": 2, "x": 3, "y": 4}
SOURCES, SIZES = (BASE, SWAPPED, LONGER), (4, 3, 5)
_ = NONE


def tables(tokens: list[str | None], **changes: Any) -> list[list[list[int]]]:
    options = {"base": 0, "donor": 0, "given": {}, "mean_padding": False, **changes}
    return [table.tolist() for table in row_tables(tokens, SOURCES, SIZES, **options).tables]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        # its own, wherever it is
        ("a", ([0, _, _], [_, 1, _], [_, _, 0])),
        # the base's, for who has none
        ("c", ([2, _, _], [2, _, _], [_, _, 2])),
        # the average of all who have it, where the base has none
        ("x", ([_, 2, 3], [_, 2, _], [_, _, 3])),
        # the only one there is
        ("y", ([_, _, 4], [_, _, 4], [_, _, 4])),
        # nobody has it
        ("z", ([_, _, _], [_, _, _], [_, _, _])),
    ],
)
def test_a_source_without_the_token_takes_its_row_by_rule(
    token: str, expected: tuple[list[int], ...]
) -> None:
    assert tuple(table[0] for table in tables([token])) == expected


@pytest.mark.parametrize(
    ("token", "rule", "expected"),
    [
        ("x", Given(source=2, row=3, force=False), ([_, _, 3], [_, 2, _], [_, _, 3])),
        ("x", Given(source=0, row=1, force=True), ([1, _, _], [1, _, _], [1, _, _])),
        ("x", Given(source=None, row=_, force=False, zero=True), ([_] * 3, [_, 2, _], [_, _, 3])),
        ("x", Given(source=None, row=_, force=True, zero=True), ([_] * 3, [_] * 3, [_] * 3)),
        ("x", Given(source=None, row=_, force=True), ([_, 2, 3], [_, 2, 3], [_, 2, 3])),
        ("a", Given(source=None, row=_, force=True), ([0, _, _], [0, _, _], [0, _, _])),
        ("z", Given(source=1, row=0, force=False), ([_, 0, _], [_, 0, _], [_, 0, _])),
    ],
)
def test_the_recipe_has_its_say(token: str, rule: Given, expected: tuple[list[int], ...]) -> None:
    assert tuple(table[0] for table in tables([token], given={token: rule})) == expected


def test_padding_is_each_sources_own_where_it_has_it_and_else_the_donors() -> None:
    base, swapped, longer = tables(["a", "b", "c", None])

    assert base[3] == [3, _, _]
    assert swapped[3] == [3, _, _]
    assert longer[3] == [3, _, _]  # its row 3 is a token's
    assert tables(["a", "b", None, None], base=1, donor=1)[0][3] == [3, _, _]
    assert tables(["a", "b", None, None], base=1, donor=1)[1][3] == [_, _, _]


def test_padding_may_be_the_mean_of_the_rest() -> None:
    for table in tables(["a", None], mean_padding=True):
        assert table[1] == [MEAN, _, _]


def test_what_each_source_lacks_is_counted() -> None:
    tokens = ["a", "b", "c", "x", "y", None]
    options: dict[str, Any] = {"base": 0, "donor": 0, "given": {}, "mean_padding": False}
    assert row_tables(tokens, SOURCES, SIZES, **options).lacked == (2, 2, 0)


def test_a_source_that_has_it_all_in_place_stays_as_it_is() -> None:
    made = row_tables(
        ["a", "b", "c", None], SOURCES, SIZES, base=0, donor=0, given={}, mean_padding=False
    )

    assert [is_identity(table, i, SIZES[i]) for i, table in enumerate(made.tables)] == [
        True,
        False,
        False,
    ]


def test_runs_are_stretches_in_which_everything_counts_up() -> None:
    table = np.array(
        [[0, _], [1, _], [5, _], [_, 7], [_, 8], [3, 4], [4, 5], [5, 7], [_, _], [_, _], [MEAN, _]],
        np.int32,
    )

    assert runs_of(table) == ((0, 2), (2, 1), (3, 2), (5, 2), (7, 1), (8, 2), (10, 1))
    runs = np.frombuffer(encode(table, {0: 0, 1: 1}), np.int32).reshape(-1, 4)
    assert runs.tolist() == [
        [0, 2, 0, 0],
        [2, 1, 0, 5],
        [3, 2, 1, 7],
        [5, 2, 0, 3],
        [5, 2, 1, 4],
        [7, 1, 0, 5],
        [7, 1, 1, 7],
        [8, 2, NONE, 0],
        [10, 1, MEAN, 0],
    ]
    assert used_columns(table) == [0, 1]
    assert runs_of(table[:0]) == ()


@drawn(st.lists(st.permutations(list("abcdef")), min_size=1, max_size=4), st.integers(0, 6))
def test_every_row_is_in_one_run(orders: list[list[str]], cut: int) -> None:
    sources = [{token: row for row, token in enumerate(order[cut:])} for order in orders]
    tokens: list[str | None] = [*"abcdefg", None]
    made = row_tables(
        tokens,
        sources,
        [7] * len(sources),
        base=0,
        donor=0,
        given={},
        mean_padding=True,
    )
    for table in made.tables:
        runs = runs_of(table)
        assert [row for first, count in runs for row in range(first, first + count)] == list(
            range(len(tokens))
        )
