"""Small arithmetic over axes: `1 - $w`, `$a * 0.5`, `min($a, 1)`.

What a recipe says is parsed by Python's own parser, and a list of what may be in it decides:
nothing is looked up, called or built but what stands in the tables here.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

from raymerge.errors import RecipeError
from raymerge.recipe.document import Place
from raymerge.recipe.wording import did_you_mean, listed
from raymerge.sweep.trial import Value

REFERENCE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")
"""`$name`, `${name}`, and `$$` for a dollar sign."""
MAX_LENGTH = 200
"""Characters: bounds depth and size of what is evaluated."""
_MAX_POWER = 64
_MARK = "axis__"
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}


def names_in(text: str) -> set[str]:
    """The axes that a text refers to."""
    return {found[2] or found[3] for found in REFERENCE.finditer(text) if not found[1]}


def fill(text: str, values: Mapping[str, Value], place: Place) -> Value:
    """A text with the values of axes in it; `$name` alone is the value itself.

    Raises:
        RecipeError: It names no axis.
    """
    alone = REFERENCE.fullmatch(text)
    if alone and not alone[1]:
        return _value(alone[2] or alone[3], values, place)

    def put(found: re.Match[str]) -> str:
        if found[1]:
            return "$"
        value = _value(found[2] or found[3], values, place)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return REFERENCE.sub(put, text)


def evaluate(text: str, values: Mapping[str, Value], place: Place) -> Value:
    """What an expression comes to.

    Args:
        text: As written.
        values: Of the axes.
        place: Where it stands.

    Raises:
        RecipeError: It is no arithmetic over axes, or has no finite value.
    """
    alone = REFERENCE.fullmatch(text)
    if alone and not alone[1]:
        return _value(alone[2] or alone[3], values, place)
    if len(text) > MAX_LENGTH or _MARK in text:
        raise place.error(f"{text[:60]!r} is too long; at most {MAX_LENGTH} characters")
    marked = REFERENCE.sub(lambda found: f" {_MARK}{found[2] or found[3]} ", text).strip()
    try:
        tree = ast.parse(marked, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise place.error(
            f"{text!r} is no arithmetic; write numbers, $axes, + - * / // % **, and {_known()}"
        ) from error
    try:
        result = _Evaluator(text, values, place).number(tree.body)
        finite = math.isfinite(result)
    except RecipeError:
        raise
    except (ArithmeticError, ValueError) as error:
        raise place.error(f"{text!r} cannot be worked out: {error}") from error
    if not finite:
        raise place.error(f"{text!r} is {result}; it has to be finite")
    return result


def _known() -> str:
    return f"{listed(_FUNCTIONS)}()"


def _value(name: str, values: Mapping[str, Value], place: Place) -> Value:
    if name in values:
        return values[name]
    raise place.error(
        f"${name}: there is no axis {name!r}; axes: {listed(values)}.{did_you_mean(name, values)}"
    )


class _Evaluator:
    """Works out a tree of nodes that are all in the tables."""

    def __init__(self, text: str, values: Mapping[str, Value], place: Place) -> None:
        self._text = text
        self._values = values
        self._place = place

    def number(self, node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return value
            case ast.Name(id=name) if name.startswith(_MARK):
                return self._axis(name.removeprefix(_MARK))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.number(operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return _power(self.number(left), self.number(right))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](self.number(left), self.number(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return self._call(name, [self.number(each) for each in args])
        raise self._place.error(
            f"{self._text!r}: {ast.unparse(node).replace(_MARK, '$')!r} is not allowed; write "
            f"numbers, $axes, + - * / // % **, and {_known()}"
        )

    def _axis(self, name: str) -> float:
        value = _value(name, self._values, self._place)
        if isinstance(value, bool | str):
            raise self._place.error(
                f"{self._text!r}: ${name} is {value!r}, and arithmetic takes numbers"
            )
        return value

    def _call(self, name: str, values: list[float]) -> float:
        try:
            return _FUNCTIONS[name](*values)
        except TypeError as error:
            raise self._place.error(f"{self._text!r}: {name}: {error}") from error


def _power(base: float, exponent: float) -> float:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) <= 2**_MAX_POWER and 0 <= exponent <= _MAX_POWER:
        return int(base**exponent)
    return math.pow(base, exponent)
