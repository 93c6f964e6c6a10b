"""Ranges: every needed byte is covered, in the order of need, by requests of a good size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.plan.ranges import (
    LEAST_WINDOW_BYTES,
    MAX_GAP_BYTES,
    MAX_RANGE_BYTES,
    WINDOW_BYTES,
    Need,
    Range,
    range_bytes,
    ranges,
)

KIB, MIB = 2**10, 2**20


def need(start: int, stop: int, *, file: str = "a", node: int = 0) -> Need:
    return Need(node, 0, file, start, stop)


def tiles(file: str, start: int, stop: int, tile: int = 512 * KIB, *, node: int = 0) -> list[Need]:
    return [
        need(first, min(first + tile, stop), file=file, node=node)
        for first in range(start, stop, tile)
    ]


def together(*streams: list[Need]) -> list[Need]:
    """A tile of each in turn."""
    return [one for row in zip(*streams, strict=True) for one in row]


@dataclass(frozen=True)
class Case:
    id: str
    needs: list[Need]
    expected: list[tuple[str, int, int]]
    window_bytes: int = WINDOW_BYTES


CASES = [
    Case("nothing", [], []),
    Case("an empty tensor", [need(5, 5)], []),
    Case("one small tensor", [need(10, 30)], [("a", 10, 30)]),
    Case(
        "neighbours in whatever order are one request",
        [need(20, 30, node=0), need(10, 20, node=1), need(30, 40, node=2)],
        [("a", 10, 40)],
    ),
    Case(
        "files are apart",
        [need(0, 10), need(0, 10, file="b"), need(10, 20)],
        [("a", 0, 20), ("b", 0, 10)],
    ),
    Case(
        "a tensor in tiles is cut where the file has its blocks",
        tiles("a", 3 * MIB, 20 * MIB),
        [("a", 3 * MIB, 8 * MIB), ("a", 8 * MIB, 16 * MIB), ("a", 16 * MIB, 20 * MIB)],
    ),
    Case(
        "tensors that are read side by side come in turn, each by the blocks of its file",
        together(tiles("a", 0, 24 * MIB), tiles("b", MIB, 25 * MIB)),
        [
            *(("a", 0, 8 * MIB), ("b", MIB, 8 * MIB), ("b", 8 * MIB, 16 * MIB)),
            *(("a", 8 * MIB, 16 * MIB), ("b", 16 * MIB, 24 * MIB), ("a", 16 * MIB, 24 * MIB)),
            ("b", 24 * MIB, 25 * MIB),
        ],
    ),
    Case(
        "and so do four, wherever they begin",
        together(*(tiles(file, 100 * i, 8 * MIB) for i, file in enumerate("abcd"))),
        [(file, 100 * i, 8 * MIB) for i, file in enumerate("abcd")],
    ),
    Case(
        "a gap that is little of what is read is read too",
        [need(0, 6400), need(6464, 12864)],
        [("a", 0, 12864)],
    ),
    Case(
        "a gap that is more is not",
        [need(0, 6400), need(6600, 13000)],
        [("a", 0, 6400), ("a", 6600, 13000)],
    ),
    Case(
        "nor is a long one",
        [need(0, 7 * MIB), need(7 * MIB + MAX_GAP_BYTES + 1, 8 * MIB)],
        [("a", 0, 7 * MIB), ("a", 7 * MIB + MAX_GAP_BYTES + 1, 8 * MIB)],
    ),
    Case(
        "the same bytes soon again are fetched once",
        [need(0, 100), need(0, 100)],
        [("a", 0, 100)],
    ),
    Case(
        "and later again twice",
        [*tiles("a", 0, 3 * MIB), *tiles("a", 0, 3 * MIB)],
        [("a", i * 256 * KIB, (i + 1) * 256 * KIB) for i in (*range(12), *range(12))],
        window_bytes=LEAST_WINDOW_BYTES,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_ranges_are(case: Case) -> None:
    found = list(ranges(case.needs, case.window_bytes))

    assert [(one.file, one.start, one.stop) for one in found] == case.expected


def test_a_shard_of_small_tensors_is_a_few_requests() -> None:
    small = [need(i * 8 * KIB, (i + 1) * 8 * KIB, node=i) for i in range(2000)]

    assert len(list(ranges(small, WINDOW_BYTES))) == 2


def test_what_is_out_of_sight_waits() -> None:
    near, far = need(0, MIB), need(2 * MIB, 3 * MIB, node=2)
    between = tiles("b", 0, 32 * MIB, node=1)

    assert [one.file for one in ranges([near, *between, far], WINDOW_BYTES)] == list("abbbba")


def test_a_range_knows_what_it_is_for() -> None:
    (found,) = ranges([need(0, 10, node=3), need(0, 10, node=4), need(10, 15, node=4)], MIB)

    assert found == Range(0, "a", 0, 15, used_bytes=25, last_node=4)


def test_they_are_made_as_they_are_asked_for() -> None:
    def endless() -> list[Need]:
        raise AssertionError

    def needs() -> object:
        yield from tiles("a", 0, 48 * MIB)
        endless()

    assert next(ranges(needs(), WINDOW_BYTES)).nbytes == MAX_RANGE_BYTES  # type: ignore[arg-type]


wanted = st.lists(
    st.builds(
        lambda node, source, file, start, nbytes: Need(node, source, file, start, start + nbytes),
        st.integers(0, 5),
        st.integers(0, 1),
        st.sampled_from("ab"),
        st.integers(0, 300),
        st.integers(0, 60) | st.integers(0, 900),
    ),
    max_size=30,
)


@given(wanted, st.integers(10, 800) | st.just(MIB))
def test_every_need_is_met_in_order_within_the_window(needs: list[Need], window_bytes: int) -> None:
    """Read every byte in order, as the run does, each from the first range that has it left."""
    made = list(ranges(needs, window_bytes))
    left = [one.used_bytes for one in made]
    begun: list[int] = []
    most = 0
    for one in needs:
        for at in range(one.start, one.stop):
            index = next(
                i
                for i, found in enumerate(made)
                if (found.source, found.file) == (one.source, one.file)
                and found.start <= at < found.stop
                and left[i]
            )
            if index not in begun:
                begun.append(index)
            left[index] -= 1
            assert one.node <= made[index].last_node
            live = (made[i].nbytes for i in begun if left[i])
            most = max(most, sum(live))

    assert not any(left), "nothing is fetched that is not used"
    assert begun == sorted(begun), "the order of the ranges is that of first need"
    assert most <= (window_bytes - range_bytes(window_bytes)) * 1.01
    assert all(0 < one.nbytes <= range_bytes(window_bytes) for one in made)


@given(wanted, st.integers(10, 800))
def test_what_is_fetched_is_what_is_needed_and_a_hundredth(
    needs: list[Need], window_bytes: int
) -> None:
    made = list(ranges(needs, window_bytes))
    asked = sum(need.stop - need.start for need in needs)
    bytes_of = Counter(
        (need.source, need.file, at) for need in needs for at in range(need.start, need.stop)
    )
    covered = {(one.source, one.file, at) for one in made for at in range(one.start, one.stop)}

    assert sum(one.used_bytes for one in made) == asked
    assert covered >= set(bytes_of)
    assert sum(one.nbytes for one in made) <= asked * 1.01
