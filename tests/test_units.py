from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("7", 7),
        ("7 B", 7),
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        (" 1.5 kB ", 1500),
        ("5GB", 5_000_000_000),
        ("0.5 TiB", 2**39),
        ("2PB", 2 * 10**15),
        ("3 MiB", 3 * 2**20),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "8 Gigs", "1e9", "5GB5", "1,5GB", "nan", "0x10", "8 G iB"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 5GB or 8GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (9_900_000_000, "9.2 GiB"),
        (2**40, "1.0 TiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_a_size_is_written_below_1024_of_its_unit(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**59))
def test_what_is_written_is_read_to_a_tenth_of_the_unit(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= max(0.06 * size, 0)


@given(st.integers(0, 10**15))
def test_plain_bytes_are_read_exactly(size: int) -> None:
    assert parse_bytes(str(size)) == size
