"""How a merge method is declared: one decorated pure function, read once at import.

The function's keyword-only parameters are the recipe's knobs: their names, types, ranges and
defaults. `PerSource[...]` takes one value per source, and its default is a tuple of the one value
that every source gets; a trailing underscore is dropped, since YAML can say `lambda` and Python
cannot. A knob without a default must be given. Whatever cannot be read is a `TypeError` at import,
never a knob that silently does not exist.

What the function returns depends on its family, and the family is what makes it fast:

    @span_method    float64 coefficients, one per input; with a leading `gram` parameter it is
                    given the float64 Gram matrix of those inputs: of the whole tensor, or a
                    stack of them, `(..., n, n)`, one for each row or column (`group`)
    @delta_method   a `DeltaRule`: which entries of each task vector stay, whether signs are
                    elected, how what is left is fused
    @free_method    a `FreeRule` of its own: its reductions and the pass that writes
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from raymerge.kernels.groups import Group

T = TypeVar("T")
Gram = npt.NDArray[np.float64]
Coefficients = Sequence[float | npt.NDArray[np.float64]]
"""One per input; of a stack of Gram matrices, one per input and matrix."""
KnobValue = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Range:
    """Closed limits of a numeric knob."""

    lower: float
    upper: float

    @property
    def words(self) -> str:
        """The limits after a noun: ` from 0 to 1`."""
        if self.upper == math.inf:
            return f" of at least {self.lower:g}"
        return f" from {self.lower:g} to {self.upper:g}"


class _PerSourceMark:
    """Marks a knob that takes one value per source."""


PerSource = Annotated[Sequence[T], _PerSourceMark()]
Density = Annotated[float, Range(0.0, 1.0)]
"""Fraction of a task vector's entries to keep."""
Fraction = Annotated[float, Range(0.0, 1.0)]
"""Any other share of a whole, or a difference of two."""
NotNegative = Annotated[float, Range(0.0, math.inf)]


class Family(StrEnum):
    """What a method's function is given and what it returns."""

    SPAN = "span"
    DELTA = "delta"
    FREE = "free"


class Over(StrEnum):
    """Which vectors a span method combines, in this order."""

    SOURCES = "sources"
    BASE_AND_SOURCES = "base and sources"
    DELTAS = "deltas"
    DELTAS_IF_BASE = "deltas if there is a base, else sources"

    def resolve(self, *, has_base: bool) -> Over:
        """What it is for a recipe with or without a base."""
        if self is not Over.DELTAS_IF_BASE:
            return self
        return Over.DELTAS if has_base else Over.SOURCES


GroupChoice = Callable[[Mapping[str, Any]], Group]
"""From the knobs of a tensor to what each of its Gram matrices is taken over."""


def whole_tensor(_knobs: Mapping[str, Any]) -> Group:
    """One Gram matrix, whatever the knobs."""
    return Group.TENSOR


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A parameter a recipe may turn."""

    name: str
    kind: type[bool | int | float] | None
    """Type of a plain value; None where only `choices` are allowed."""
    per_source: bool
    limits: Range | None
    choices: tuple[str, ...]
    """Words allowed instead of a value of `kind`."""
    required: bool
    default: KnobValue | None

    @property
    def allowed(self) -> str:
        """What may be written, in words: `a number from 0 to 1`."""
        words = [repr(choice) for choice in self.choices]
        if self.kind is bool:
            words = ["true", "false", *words]
        elif self.kind is not None:
            noun = "a whole number" if self.kind is int else "a number"
            words = [noun + (self.limits.words if self.limits else ""), *words]
        return " or ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge method as the registry knows it."""

    name: str
    family: Family
    function: Callable[..., Any]
    paper: str
    """Where the method was published, or who defined it."""
    over: Over
    needs_base: bool
    min_sources: int
    max_sources: int | None
    knobs: Mapping[str, Knob]
    needs_gram: bool = False
    group: GroupChoice = whole_tensor

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def doc(self) -> str:
        """The function's whole docstring."""
        return inspect.getdoc(self.function) or ""


_METHODS: dict[str, Method] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def span_method(
    name: str,
    *,
    paper: str,
    over: Over,
    min_sources: int = 1,
    max_sources: int | None = None,
    group: GroupChoice = whole_tensor,
) -> Callable[[Function], Function]:
    """Register a sum of inputs with scalar coefficients.

    The function returns one float64 coefficient per input; the engine applies them in one pass. Its
    leading parameter `gram`, if it has one, is the float64 matrix of inner products of the inputs,
    `(n, n)`; where `group` names rows or columns it is a stack of those, `(..., n, n)`, and what
    the function returns has the stack's shape.

    What is wrong with the knobs alone the function has to refuse whatever the matrix is: it is
    called with an identity matrix while planning.
    """

    def register(function: Function) -> Function:
        _add(
            name,
            function,
            family=Family.SPAN,
            paper=paper,
            over=over,
            needs_base=over in (Over.BASE_AND_SOURCES, Over.DELTAS),
            min_sources=min_sources,
            max_sources=max_sources,
            needs_gram="gram" in inspect.signature(function).parameters,
            group=group,
        )
        return function

    return register


def delta_method(
    name: str, *, paper: str, min_sources: int = 1, max_sources: int | None = None
) -> Callable[[Function], Function]:
    """Register a method on sparsified task vectors; the function returns a `DeltaRule`."""

    def register(function: Function) -> Function:
        _add(
            name,
            function,
            family=Family.DELTA,
            paper=paper,
            over=Over.DELTAS,
            needs_base=True,
            min_sources=min_sources,
            max_sources=max_sources,
        )
        return function

    return register


def free_method(
    name: str, *, paper: str, min_sources: int = 1, max_sources: int | None = None
) -> Callable[[Function], Function]:
    """Register a method of its own kind on a base and sources; the function returns a `FreeRule`.

    What the kernels of its rule are given is the base, then the sources in recipe order.
    """

    def register(function: Function) -> Function:
        _add(
            name,
            function,
            family=Family.FREE,
            paper=paper,
            over=Over.BASE_AND_SOURCES,
            needs_base=True,
            min_sources=min_sources,
            max_sources=max_sources,
        )
        return function

    return register


def _add(name: str, function: Callable[..., Any], **fields: Any) -> None:
    if name in _METHODS:
        raise TypeError(f"method {name!r} is defined twice: {_METHODS[name].function.__module__}")
    _METHODS[name] = Method(name=name, function=function, knobs=_read_knobs(function), **fields)


def _read_knobs(function: Callable[..., Any]) -> Mapping[str, Knob]:
    hints = get_type_hints(function, include_extras=True)
    knobs = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "gram":
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(
                f"{function.__qualname__}: {parameter.name!r} is not keyword-only, so no recipe "
                "can give it; put it after a `*`"
            )
        knob = _read_knob(function, parameter, hints.get(parameter.name))
        knobs[knob.name] = knob
    return MappingProxyType(knobs)


def _read_knob(function: Callable[..., Any], parameter: inspect.Parameter, hint: Any) -> Knob:
    hint, marks = _unwrap(hint)
    per_source = any(isinstance(mark, _PerSourceMark) for mark in marks)
    if per_source:
        hint, marks = _unwrap(get_args(hint)[0])
    choices: tuple[str, ...] = ()
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [option for option in alternatives if get_origin(option) is not Literal]
    for option in alternatives:
        if get_origin(option) is Literal:
            choices += get_args(option)
    if len(kinds) > 1 or any(kind not in (bool, int, float) for kind in kinds):
        raise TypeError(
            f"{function.__qualname__}: knob {parameter.name!r} is {hint!r}; a recipe can give a "
            "bool, an int or a float, or one of the words of a Literal"
        )
    required = parameter.default is parameter.empty
    default = parameter.default
    if per_source and not required:
        if not isinstance(default, tuple) or len(default) != 1:
            raise TypeError(
                f"{function.__qualname__}: the default of knob {parameter.name!r} is {default!r}; "
                "one value per source takes a tuple of the one that every source gets"
            )
        default = default[0]
    return Knob(
        name=parameter.name.rstrip("_"),
        kind=kinds[0] if kinds else None,
        per_source=per_source,
        limits=next((mark for mark in marks if isinstance(mark, Range)), None),
        choices=choices,
        required=required,
        default=None if required else default,
    )


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        return inner, tuple(marks)
    return hint, ()


def methods() -> Mapping[str, Method]:
    """Every registered method by name, in alphabetical order."""
    return MappingProxyType(dict(sorted(_METHODS.items())))
