"""Which weights can be divided by, and what a rule holds."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.methods.rules import (
    MAX_MIXED_SIGN_SOURCES,
    DeltaRule,
    KeepDrawn,
    Rescale,
    SourcesRefusedError,
    check_divisors,
    drawn_rescale,
)
from tests.strategies import quick

EVERY_SUBSET = pytest.mark.parametrize("every_subset", [False, True])


def rule(weight: tuple[float, ...], *, elect: bool, normalize: bool) -> DeltaRule:
    return DeltaRule(
        keep=KeepDrawn(density=(1.0,) * len(weight)),
        weight=weight,
        rescale=Rescale.NONE,
        elect=elect,
        normalize=normalize,
        scale=1.0,
    )


@EVERY_SUBSET
@pytest.mark.parametrize(
    "weight",
    [
        pytest.param((), id="none"),
        pytest.param((0.0, 0.0), id="all 0"),
        pytest.param((0.0, -1.0), id="one below 0"),
        pytest.param((1e-30, 1e30), id="all above 0, however far apart"),
        pytest.param((-1.0, -2.0, -3.0), id="all below 0"),
        pytest.param((1.0, -0.5), id="of both signs, not cancelling"),
        pytest.param((1.0,) * 50, id="many above 0"),
        pytest.param((1.0, -1.00001), id="a sum of 5e-6 of the magnitudes"),
    ],
)
def test_a_sum_that_can_be_divided_by_is_accepted(
    weight: tuple[float, ...], *, every_subset: bool
) -> None:
    check_divisors(weight, every_subset=every_subset)


@EVERY_SUBSET
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        pytest.param(
            (1.0, -1.0),
            r"the weights 1 \(source 1\), -1 \(source 2\) sum to 0, and `normalize: true` divides",
            id="cancel",
        ),
        pytest.param((0.0, 2.0, 0.0, -2.0), r"2 \(source 2\), -2 \(source 4\) sum", id="beside 0s"),
        pytest.param((0.1, 0.2, -0.3), r"0.1 .*0.2 .*-0.3 \(source 3\) sum", id="but for rounding"),
        pytest.param((1.0, -1.000001), "source 1.*source 2", id="a sum of 5e-7 of the magnitudes"),
        pytest.param((1e-20, -1e-20), "source 1.*source 2", id="tiny weights"),
    ],
)
def test_weights_that_cancel_are_refused_by_name(
    weight: tuple[float, ...], message: str, *, every_subset: bool
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_divisors(weight, every_subset=every_subset)
    assert "write `normalize: false` or change a weight" in str(caught.value)


def test_the_sources_refused_are_named_by_number_or_by_label() -> None:
    with pytest.raises(SourcesRefusedError) as caught:
        check_divisors((1.0, 0.0, -1.0), every_subset=True)
    refused = pickle.loads(pickle.dumps(caught.value))
    assert (refused.knobs, refused.sources) == (("weight",), (0, 2))
    assert str(refused).startswith("the weights 1 (source 1), -1 (source 3) sum to 0")
    assert refused.naming("xyz").startswith("the weights 1 (x), -1 (z) sum to 0")


@quick
@given(
    weight=st.lists(st.sampled_from([0, 1, -1, 2, -2, 3, 0.5, -0.5]), max_size=7),
    every_subset=st.booleans(),
)
def test_weights_are_refused_iff_a_sum_that_may_divide_is_0(
    weight: list[float], *, every_subset: bool
) -> None:
    used = [value for value in weight if value]
    sizes = range(1, len(used) + 1) if every_subset else [len(used)]
    cancels = any(sum(subset) == 0 for size in sizes if size for subset in combinations(used, size))

    if cancels:
        with pytest.raises(ValueError, match="divides by such a sum"):
            check_divisors(tuple(weight), every_subset=every_subset)
    else:
        check_divisors(tuple(weight), every_subset=every_subset)


def test_too_many_subsets_are_refused_rather_than_left_unchecked() -> None:
    weight = (-50.0, *[1.0] * MAX_MIXED_SIGN_SOURCES)

    with pytest.raises(ValueError, match=r"21 weights of both signs .* too many subsets"):
        check_divisors(weight, every_subset=True)
    check_divisors(weight, every_subset=False)
    check_divisors((*weight[:-1], 0.0), every_subset=True)


@pytest.mark.parametrize(
    ("elect", "normalize", "refused"),
    [
        pytest.param(True, True, True, id="any subset may be what is left"),
        pytest.param(False, True, False, id="the whole is always left"),
        pytest.param(True, False, False, id="nothing is divided"),
    ],
)
def test_a_rule_checks_what_it_divides_by(*, elect: bool, normalize: bool, refused: bool) -> None:
    weight = (1.0, 0.5, -0.5)
    if refused:
        with pytest.raises(ValueError, match=r"0.5 \(source 2\), -0.5 \(source 3\) sum to 0"):
            rule(weight, elect=elect, normalize=normalize)
    else:
        assert rule(weight, elect=elect, normalize=normalize).weight == weight


def test_a_rule_is_frozen() -> None:
    frozen = rule((1.0,), elect=True, normalize=True)
    with pytest.raises(FrozenInstanceError):
        frozen.weight = (2.0,)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("knob", "meaning"),
    [(True, Rescale.DENSITY), (False, Rescale.NONE), ("l1", Rescale.L1)],
)
def test_what_dare_s_rescale_means(*, knob: bool | str, meaning: Rescale) -> None:
    assert drawn_rescale(knob) is meaning
