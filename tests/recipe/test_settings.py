"""Values of knobs: types, ranges, gradients, conditions, and what each refusal says."""

from __future__ import annotations

import pytest

from raymerge.errors import RecipeError
from raymerge.methods.registry import Knob, KnobValue, Range
from raymerge.recipe.document import read_documents
from raymerge.recipe.settings import Setting, read_setting


def knob(
    name: str,
    kind: type[bool | int | float] | None,
    *,
    limits: Range | None = None,
    choices: tuple[str, ...] = (),
) -> Knob:
    return Knob(
        name=name,
        kind=kind,
        per_source=False,
        limits=limits,
        choices=choices,
        required=True,
        default=None,
    )


DENSITY = knob("density", float, limits=Range(0.0, 1.0))
WEIGHT = knob("weight", float)
GAMMA = knob("gamma", float, limits=Range(0.0, 0.5))
MAX_ITER = knob("max_iter", int, limits=Range(1, 100))
NORMALIZE = knob("normalize", bool)
RESCALE = knob("rescale", bool, choices=("l1",))
TRIM = knob("trim", None, choices=("tensor", "model"))


def read(which: Knob, text: str) -> Setting:
    return read_setting(
        which, read_documents(f"{which.name}: {text}", "r.yaml")[0].fields[which.name].node
    )


@pytest.mark.parametrize(
    ("which", "text", "value"),
    [
        (DENSITY, "1", 1.0),
        (DENSITY, "1e-5", 1e-5),
        (DENSITY, "0", 0.0),
        (WEIGHT, "-2", -2.0),
        (MAX_ITER, "7", 7),
        (MAX_ITER, "7.0", 7),
        (NORMALIZE, "true", True),
        (NORMALIZE, "1", True),
        (NORMALIZE, "0.0", False),
        (NORMALIZE, "yes", True),
        (NORMALIZE, "Off", False),
        (RESCALE, "l1", "l1"),
        (RESCALE, "'l1'", "l1"),
        (RESCALE, "false", False),
        (TRIM, "model", "model"),
    ],
)
def test_a_scalar_becomes_a_value_of_the_knobs_type(
    which: Knob, text: str, value: KnobValue
) -> None:
    (clause,) = read(which, text).clauses
    assert clause.filter is None
    assert clause.anchors == (value,)
    assert type(clause.anchors[0]) is type(value)


def test_minus_zero_is_zero_so_that_equal_knobs_are_one() -> None:
    assert str(read(WEIGHT, "-0.0").clauses[0].anchors[0]) == "0.0"


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (
            DENSITY,
            "20",
            "density is 20; it is the fraction to keep, from 0 to 1. For 20% write 0.2.",
        ),
        (DENSITY, "1.2", "density is 1.2; it is the fraction to keep, from 0 to 1."),
        (DENSITY, "-1", "density is -1; it is the fraction to keep, from 0 to 1."),
        (DENSITY, "101", "density is 101; it is the fraction to keep, from 0 to 1."),
        (GAMMA, "20", "gamma is 20; allowed: a number from 0 to 0.5."),
        (WEIGHT, "'0.5'", "weight is '0.5'; allowed: a number. Write 0.5 without quotes."),
        (WEIGHT, "1_000", "weight is '1_000'; allowed: a number. Write 1000."),
        (WEIGHT, "true", "weight is true; allowed: a number."),
        (WEIGHT, "half", "weight is 'half'; allowed: a number."),
        (WEIGHT, "null", "weight is null; allowed: a number."),
        (WEIGHT, "", "weight is empty; allowed: a number."),
        (WEIGHT, ".nan", "weight is .nan; it has to be finite; allowed: a number."),
        (WEIGHT, "-.inf", "weight is -.inf; it has to be finite; allowed: a number."),
        (WEIGHT, "1e999", "weight is 1e999; it has to be finite; allowed: a number."),
        (MAX_ITER, "2.5", "max_iter is 2.5; allowed: a whole number from 1 to 100."),
        (MAX_ITER, "0", "max_iter is 0; allowed: a whole number from 1 to 100."),
        (NORMALIZE, "2", "normalize is 2; allowed: true or false."),
        (NORMALIZE, "flase", "normalize is 'flase'; allowed: true or false. Did you mean 'false'?"),
        (
            NORMALIZE,
            "'true'",
            "normalize is 'true'; allowed: true or false. Write true without quotes.",
        ),
        (RESCALE, "L1", "rescale is 'L1'; allowed: true or false or 'l1'. Did you mean 'l1'?"),
        (TRIM, "modle", "trim is 'modle'; allowed: 'tensor' or 'model'. Did you mean 'model'?"),
        (TRIM, "1", "trim is 1; allowed: 'tensor' or 'model'."),
        (WEIGHT, "[]", "weight is an empty list; allowed: a number"),
        (WEIGHT, "[0, x]", "weight is 'x'; allowed: a number."),
        (WEIGHT, "[0, [1]]", "weight: a list inside a gradient; allowed: a number"),
        (
            DENSITY,
            "[0, 2]",
            "density is 2; it is the fraction to keep, from 0 to 1. For 2% write 0.02.",
        ),
        (
            NORMALIZE,
            "[true, false]",
            "normalize is a list; only numbers can be a gradient; allowed: true or false",
        ),
        (
            TRIM,
            "[tensor]",
            "trim is a list; only numbers can be a gradient; allowed: 'tensor' or 'model'",
        ),
        (
            TRIM,
            "{value: model}",
            "trim: must be the same for every tensor; allowed: 'tensor' or 'model'",
        ),
        (WEIGHT, "{filter: mlp}", "weight: a condition without a value; write {value: ...}"),
        (
            WEIGHT,
            "{value: 1, fliter: mlp}",
            (
                "fliter: a condition of weight has no such key; allowed: filter, value. "
                "Did you mean 'filter'?"
            ),
        ),
        (
            WEIGHT,
            "{value: 1, filter: 0}",
            "filter is 0; allowed: a string; to mean the word, write '0'",
        ),
        (
            WEIGHT,
            "{value: {value: 1}}",
            "weight: a condition inside a condition; allowed: a value",
        ),
        (
            WEIGHT,
            "[1, {value: 2}]",
            "weight: 1 among conditions; write it as {value: 1} or make the whole list numbers",
        ),
        (
            DENSITY,
            "{value: 20}",
            "density is 20; it is the fraction to keep, from 0 to 1. For 20% write 0.2.",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(
    which: Knob, text: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(which, text)
    assert str(caught.value) == f"r.yaml:1: {message}"


def test_an_integer_beyond_any_float_is_not_finite() -> None:
    with pytest.raises(RecipeError, match="it has to be finite"):
        read(WEIGHT, "0x" + "f" * 400)


def test_a_long_value_is_quoted_in_part() -> None:
    with pytest.raises(RecipeError) as caught:
        read(WEIGHT, "x" * 1000)
    assert len(str(caught.value)) < 200


def test_conditions_keep_their_order_and_null_or_star_match_everything() -> None:
    setting = read(WEIGHT, "[{value: 1, filter: mlp}, {value: [0, 1], filter: '*'}, {value: 3}]")
    assert [(clause.filter, clause.anchors) for clause in setting.clauses] == [
        ("mlp", (1.0,)),
        (None, (0.0, 1.0)),
        (None, (3.0,)),
    ]
    assert [clause.anchors for clause in setting.unreached] == [(3.0,)]


def test_a_single_condition_needs_no_list() -> None:
    (clause,) = read(WEIGHT, "{value: 1, filter: null}").clauses
    assert clause.filter is None


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("1", True),
        ("[1]", True),
        ("{value: 1}", True),
        ("[1, 1]", False),
        ("{value: 1, filter: a}", False),
    ],
)
def test_constant_means_one_value_for_every_tensor(text: str, *, constant: bool) -> None:
    assert read(WEIGHT, text).constant is constant
