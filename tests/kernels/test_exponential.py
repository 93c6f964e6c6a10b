"""exp and log of our own: as right as the library's, the same bits in numba, torch and numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymerge.kernels import torch_fusion
from raymerge.kernels.exponential import divergence_terms, exponentials
from tests.oracles import Doubles
from tests.oracles_free import contract_exp, contract_log_ratio
from tests.strategies import quick

exponents = st.floats(-800, 600, width=32)
shares = st.floats(1e-8, 1.0)


def compiled_exp(u: Any) -> Doubles:
    values = np.array(u, np.float32)
    out = np.empty(values.size)
    exponentials(values, 0.0, out)
    return out


def compiled_log(p: Any, q: Any) -> Doubles:
    out = np.empty(len(p))
    divergence_terms(np.array(p), 1.0, np.array(q), 1.0, 0.0, out)
    return out


@quick
@given(u=st.lists(exponents, min_size=1, max_size=40))
def test_exp_is_the_library_s_to_a_few_units_in_the_last_place(u: list[float]) -> None:
    for value, found in zip(u, compiled_exp(u), strict=True):
        assert found == pytest.approx(math.exp(max(value, -700)), rel=1e-15)


@quick
@given(u=st.lists(exponents, min_size=1, max_size=40))
def test_exp_has_the_same_bits_everywhere(u: list[float]) -> None:
    doubles = np.array(u, np.float32).astype(np.float64)
    found = compiled_exp(u).tobytes()

    assert contract_exp(doubles).tobytes() == found
    assert torch_fusion.exponential(torch.from_numpy(doubles)).numpy().tobytes() == found


def test_exp_of_0_is_1_and_a_nan_stays_one() -> None:
    assert compiled_exp([0.0, -0.0]).tolist() == [1, 1]
    assert np.isnan(compiled_exp([np.nan] * 9)).all()
    assert torch_fusion.exponential(torch.tensor([math.nan]).double()).isnan().all()


@quick
@given(pairs=st.lists(st.tuples(shares, shares), min_size=1, max_size=40))
def test_p_log_p_over_q_is_the_library_s(pairs: list[tuple[float, float]]) -> None:
    p, q = zip(*pairs, strict=True)
    for found, left, right in zip(compiled_log(p, q), p, q, strict=True):
        assert found == pytest.approx(left * math.log(left / right), rel=1e-13, abs=3e-16 * left)


@quick
@given(
    pairs=st.lists(
        st.tuples(shares, shares) | shares.flatmap(lambda p: st.tuples(st.just(p), nearby(p))),
        min_size=1,
        max_size=40,
    )
)
def test_log_has_the_same_bits_everywhere(pairs: list[tuple[float, float]]) -> None:
    """Near ratios take another series than far ones, entry by entry."""
    p, q = (np.array(each) for each in zip(*pairs, strict=True))
    found = compiled_log(p, q).tobytes()

    assert (p * contract_log_ratio(p, q)).tobytes() == found
    left, right = torch.from_numpy(p), torch.from_numpy(q)
    assert (left * torch_fusion.log_ratio(left, right)).numpy().tobytes() == found


def nearby(p: float) -> st.SearchStrategy[float]:
    return st.floats(0.85, 1.15).map(lambda ratio: p * ratio)


def test_equal_shares_diverge_by_exactly_0() -> None:
    p = np.random.default_rng(0).random(1000)

    assert not compiled_log(p, p).any()
