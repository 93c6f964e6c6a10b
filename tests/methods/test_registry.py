"""Which methods there are, which knobs a recipe may turn, and how a bad declaration is met."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import raymerge.methods
from raymerge.methods import methods
from raymerge.methods.registry import (
    Density,
    Family,
    Over,
    PerSource,
    Range,
    delta_method,
    span_method,
)


class Row(NamedTuple):
    """What is declared about a method."""

    family: Family
    over: Over
    knobs: dict[str, tuple[str | list[str], Any]]
    """What is allowed, in words, and the default; a list marks one value per source."""
    sources: tuple[int, int | None] = (1, None)
    needs_gram: bool = False


REQUIRED = object()
WEIGHT = (["a number"], REQUIRED)
DENSITY = (["a number from 0 to 1"], 1.0)
LAMBDA = ("a number", 1.0)
RESCALE = "true or false or 'l1'"

DARE: dict[str, tuple[str | list[str], Any]] = {
    "weight": WEIGHT,
    "density": DENSITY,
    "normalize": ("true or false", False),
    "rescale": (RESCALE, True),
    "lambda": LAMBDA,
}
BREADCRUMBS: dict[str, tuple[str | list[str], Any]] = {
    "weight": WEIGHT,
    "density": DENSITY,
    "gamma": (["a number from 0 to 1"], 0.01),
    "normalize": ("true or false", False),
    "rescale": (RESCALE, False),
    "lambda": LAMBDA,
}
DELLA: dict[str, tuple[str | list[str], Any]] = {
    **DARE,
    "epsilon": (["a number from 0 to 1"], 0.15),
}
NOT_NEGATIVE = "a number of at least 0"
TABLE = {
    "arcee_fusion": Row(Family.FREE, Over.BASE_AND_SOURCES, {}, sources=(1, 1)),
    "breadcrumbs": Row(Family.DELTA, Over.DELTAS, BREADCRUMBS),
    "breadcrumbs_ties": Row(Family.DELTA, Over.DELTAS, BREADCRUMBS),
    "dare_linear": Row(Family.DELTA, Over.DELTAS, DARE),
    "dare_ties": Row(Family.DELTA, Over.DELTAS, DARE),
    "della": Row(Family.DELTA, Over.DELTAS, {**DELLA, "normalize": ("true or false", True)}),
    "della_linear": Row(Family.DELTA, Over.DELTAS, DELLA),
    "karcher": Row(
        Family.SPAN,
        Over.SOURCES,
        {
            "max_iter": ("a whole number from 0 to 100000", 10),
            "tol": ("a number from 0 to 1", 1e-5),
        },
        needs_gram=True,
    ),
    "linear": Row(
        Family.SPAN, Over.SOURCES, {"weight": WEIGHT, "normalize": ("true or false", True)}
    ),
    "model_stock": Row(
        Family.SPAN,
        Over.DELTAS,
        {"filter_wise": ("true or false", False)},
        sources=(2, None),
        needs_gram=True,
    ),
    "multislerp": Row(
        Family.SPAN,
        Over.DELTAS_IF_BASE,
        {
            "weight": WEIGHT,
            "normalize_weights": ("true or false", True),
            "eps": ("a number from 0 to 1", 1e-8),
        },
        needs_gram=True,
    ),
    "nearswap": Row(
        Family.FREE, Over.BASE_AND_SOURCES, {"t": (NOT_NEGATIVE, REQUIRED)}, sources=(1, 1)
    ),
    "nuslerp": Row(
        Family.SPAN,
        Over.DELTAS_IF_BASE,
        {
            "weight": WEIGHT,
            "nuslerp_flatten": ("true or false", True),
            "nuslerp_row_wise": ("true or false", False),
        },
        sources=(2, 2),
        needs_gram=True,
    ),
    "passthrough": Row(Family.SPAN, Over.SOURCES, {"scale": (["a number"], 1.0)}, sources=(1, 1)),
    "ram": Row(Family.FREE, Over.BASE_AND_SOURCES, {"epsilon": (NOT_NEGATIVE, 1e-5)}),
    "ramplus_tl": Row(
        Family.FREE,
        Over.BASE_AND_SOURCES,
        {
            "r": ("a number", 0.1),
            "alpha": (NOT_NEGATIVE, 0.2),
            "epsilon": (NOT_NEGATIVE, 1e-5),
        },
    ),
    "sce": Row(Family.FREE, Over.BASE_AND_SOURCES, {"select_topk": ("a number from 0 to 1", 1.0)}),
    "slerp": Row(
        Family.SPAN,
        Over.BASE_AND_SOURCES,
        {"t": ("a number", REQUIRED)},
        sources=(1, 1),
        needs_gram=True,
    ),
    "task_arithmetic": Row(
        Family.SPAN,
        Over.DELTAS,
        {"weight": WEIGHT, "normalize": ("true or false", False), "lambda": LAMBDA},
    ),
    "ties": Row(
        Family.DELTA,
        Over.DELTAS,
        {
            "weight": WEIGHT,
            "density": DENSITY,
            "normalize": ("true or false", True),
            "rescale": (RESCALE, False),
            "lambda": LAMBDA,
            "trim": ("'tensor' or 'model'", "tensor"),
        },
    ),
}
EACH_METHOD = pytest.mark.parametrize("name", TABLE)


def test_every_method_is_in_the_table_and_in_order() -> None:
    assert list(methods()) == sorted(TABLE)


@EACH_METHOD
def test_a_method_is_declared_as_in_the_table(name: str) -> None:
    row, method = TABLE[name], methods()[name]

    assert method.name == name
    assert method.family is row.family
    assert method.over is row.over
    assert method.needs_base == (row.over in {Over.BASE_AND_SOURCES, Over.DELTAS})
    assert (method.min_sources, method.max_sources) == row.sources
    assert method.needs_gram == row.needs_gram
    found = {
        knob.name: (
            [knob.allowed] if knob.per_source else knob.allowed,
            REQUIRED if knob.required else knob.default,
        )
        for knob in method.knobs.values()
    }
    assert found == row.knobs


@EACH_METHOD
def test_a_default_has_its_knob_s_type(name: str) -> None:
    for knob in methods()[name].knobs.values():
        if not knob.required:
            assert knob.default in knob.choices or type(knob.default) is knob.kind


@EACH_METHOD
def test_a_method_says_what_it_does_what_its_knobs_are_and_where_it_was_published(
    name: str,
) -> None:
    method = methods()[name]
    assert method.summary.endswith((".", ":"))
    assert "\n" not in method.summary
    assert re.search(r"arXiv:\d{4}\.\d{5}|[A-Z]+ \d{4}|mergekit", method.paper)
    for knob in method.knobs:
        assert re.search(rf"^ {{4}}{knob}_?: ", method.doc.partition("Args:\n")[2], re.MULTILINE), (
            knob
        )


@EACH_METHOD
def test_a_paper_is_cited_in_full_where_the_method_is_defined(name: str) -> None:
    method = methods()[name]
    if method.paper.startswith("arXiv:"):
        module = __import__(method.function.__module__, fromlist=["__doc__"])
        assert method.paper in (module.__doc__ or "")


def test_a_method_lies_in_the_file_of_its_name() -> None:
    folder = Path(raymerge.methods.__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "free", "registry", "rules"}

    assert files == set(methods())
    for name, method in methods().items():
        assert method.function.__module__ == f"raymerge.methods.{name}"


def test_the_registry_cannot_be_written_through() -> None:
    with pytest.raises(TypeError):
        methods()["mine"] = methods()["ties"]  # type: ignore[index]
    with pytest.raises(TypeError):
        methods()["ties"].knobs["mine"] = methods()["ties"].knobs["weight"]  # type: ignore[index]


def test_a_range_is_read_off_the_type() -> None:
    assert methods()["ties"].knobs["density"].limits == Range(0.0, 1.0)
    assert methods()["ties"].knobs["weight"].limits is None


def takes_a_word(*, word: str) -> None:
    """A str is no knob: its words have to be listed in a Literal."""


def takes_anything(*, knob) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """A knob without a type."""


def takes_two_types(*, knob: int | bool) -> None:
    """A knob has one type, beside words."""


def takes_none(*, knob: float | None = None) -> None:
    """None is no value of a recipe."""


def takes_a_list(*, knob: Sequence[float]) -> None:
    """One value per source is written `PerSource[float]`."""


def takes_words_per_source(*, knob: PerSource[str]) -> None:
    """A str is no knob per source either."""


def takes_it_by_position(density: Density) -> None:
    """A recipe gives knobs by name."""


def takes_any_number(*weight: float) -> None:
    """Likewise."""


def takes_any_name(**knobs: float) -> None:
    """Likewise."""


def gives_one_value_to_many(*, knob: PerSource[Density] = 1.0) -> None:  # type: ignore[assignment]
    """The default of one value per source is a tuple."""


def gives_two_values(*, knob: PerSource[Density] = (1.0, 0.5)) -> None:
    """There may be any number of sources."""


BAD = [
    takes_a_word,
    takes_anything,
    takes_two_types,
    takes_none,
    takes_a_list,
    takes_words_per_source,
    takes_it_by_position,
    takes_any_number,
    takes_any_name,
    gives_one_value_to_many,
    gives_two_values,
]


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "declare",
    [
        pytest.param(delta_method("mine", paper="none"), id="delta"),
        pytest.param(span_method("mine", paper="none", over=Over.SOURCES), id="span"),
    ],
)
def test_what_cannot_be_read_is_a_type_error_that_names_function_and_knob(
    declare: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__}: .*(knob|word|density|weight)"):
        declare(function)
    assert "mine" not in methods()


def test_a_name_is_taken_once() -> None:
    def other(*, weight: PerSource[float]) -> None:
        """Another method of the same name."""

    with pytest.raises(TypeError, match=r"'ties' is defined twice: raymerge\.methods\.ties"):
        delta_method("ties", paper="none")(other)


def test_a_declared_function_is_returned_as_it_was() -> None:
    from raymerge.methods.ties import ties

    assert methods()["ties"].function is ties
    assert ties.__module__ == "raymerge.methods.ties"
