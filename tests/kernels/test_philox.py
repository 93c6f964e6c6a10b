"""Keyed draws: the published generator, and masks that depend on their keys alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymerge.kernels import torch_kernels
from raymerge.kernels.philox import draw_key, draw_limit, philox_words
from tests import oracles
from tests.oracles import WORD, drawn_words, kept_drawn, philox4x32
from tests.strategies import quick

Words = npt.NDArray[np.uint64]
Generator = Callable[[int, int, int], Words]

keys = st.integers(0, 2**64 - 1)
groups = st.integers(0, 2**40)
"""Philox counters: 2**40 of them are four times as many entries, far beyond any tensor."""


def numba_words(key: int, first: int, count: int) -> Words:
    words = np.zeros(count, np.uint32)
    philox_words(np.uint64(key), np.uint64(first), count, words)
    return words.astype(np.uint64)


def torch_words(key: int, first: int, count: int) -> Words:
    words = torch_kernels.philox_words(key, first, count, torch.device("cpu"))
    return words.numpy().astype(np.uint64)


GENERATORS = pytest.mark.parametrize("generate", [numba_words, torch_words, drawn_words])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        pytest.param(
            (0, 0, 0, 0),
            (0, 0),
            (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
            id="zeros",
        ),
        pytest.param(
            (WORD, WORD, WORD, WORD),
            (WORD, WORD),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
            id="ones",
        ),
        pytest.param(
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
            id="digits of pi",
        ),
    ],
)
def test_the_oracle_gives_random123_s_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == words


@GENERATORS
def test_counter_0_under_key_0_gives_random123_s_known_answer(generate: Generator) -> None:
    assert generate(0, 0, 4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@quick
@given(key=keys, group=groups)
def test_word_i_mod_4_of_counter_i_div_4_belongs_to_entry_i(key: int, group: int) -> None:
    counter = (group & WORD, group >> 32, 0, 0)
    expected = list(philox4x32(counter, (key & WORD, key >> 32)))

    assert numba_words(key, 4 * group, 4).tolist() == expected
    assert torch_words(key, 4 * group, 4).tolist() == expected
    assert drawn_words(key, 4 * group, 4).tolist() == expected


@GENERATORS
def test_words_do_not_depend_on_where_a_tile_begins(generate: Generator) -> None:
    key = draw_key(3, label="math-7b", tensor="lm_head.weight")
    whole = generate(key, 0, 4096)
    parts = [generate(key, first, 512) for first in range(0, 4096, 512)]

    assert np.array_equal(np.concatenate(parts), whole)


@quick
@given(seed=st.integers(-(2**63), 2**63), label=st.text(max_size=20), tensor=st.text(max_size=20))
def test_the_key_is_a_hash_of_seed_label_and_tensor(seed: int, label: str, tensor: str) -> None:
    key = draw_key(seed, label=label, tensor=tensor)

    assert key == oracles.draw_key(seed, label, tensor)
    assert 0 <= key < 2**64


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(draw_key(1, label="a", tensor="t"), id="seed"),
        pytest.param(draw_key(0, label="b", tensor="t"), id="label"),
        pytest.param(draw_key(0, label="a", tensor="u"), id="tensor"),
        pytest.param(draw_key(0, label="at", tensor=""), id="where the label ends"),
    ],
)
def test_another_seed_label_or_tensor_draws_other_words(other: int) -> None:
    key = draw_key(0, label="a", tensor="t")
    drawn, redrawn = numba_words(key, 0, 4096), numba_words(other, 0, 4096)

    both_low = ((drawn < 2**31) & (redrawn < 2**31)).mean()
    assert abs(both_low - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4096), "the two are not independent"


@pytest.mark.parametrize(
    ("density", "limit"),
    [(0.0, 0), (2.0**-32, 1), (2.0**-33, 0), (0.5, 2**31), (0.1, 429496729), (1.0, 2**32)],
)
def test_the_limit_is_the_floor_of_density_times_2_to_the_32(density: float, limit: int) -> None:
    assert draw_limit(density) == limit


@quick
@given(low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 1000))
def test_what_is_kept_at_one_density_is_kept_at_every_greater_one(
    low: float, high: float, seed: int
) -> None:
    low, high = sorted((low, high))
    sparse = kept_drawn(400, low, seed=seed, label="a", tensor="t")
    dense = kept_drawn(400, high, seed=seed, label="a", tensor="t")

    assert not (sparse & ~dense).any()


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9])
def test_the_share_that_stays_is_the_density(density: float) -> None:
    """Within five standard deviations over a million entries of three tensors."""
    size = 2**20
    for tensor in ("a", "b", "c"):
        words = numba_words(draw_key(0, label="source", tensor=tensor), 0, size)
        kept = int((words < draw_limit(density)).sum())
        assert abs(kept - density * size) < 5 * math.sqrt(size * density * (1 - density))


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 256])
def test_neighbours_are_drawn_independently(shift: int) -> None:
    words = numba_words(draw_key(0, label="source", tensor="t"), 0, 2**20)
    kept = words < draw_limit(0.3)

    pairs = kept[:-shift] & kept[shift:]
    assert abs(pairs.mean() - 0.09) < 5 * math.sqrt(0.09 * 0.91 / pairs.size) * 2
