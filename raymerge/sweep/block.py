"""The `sweep:` block of a recipe: what its trials are, and how they are evaluated and chosen.

axes          values for what the recipe leaves open: every combination,
  sample        or points drawn at random,
  search        or points chosen by what earlier ones scored
greedy_soup   or averages of models, as long as they get better
path          or points between two models
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from raymerge.recipe.document import Field, Fields, Place, Scalar
from raymerge.recipe.parse import NUM_SEEDS
from raymerge.sweep.axes import MAX_TRIALS, Axis, grid, read_axes, sample
from raymerge.sweep.evaluation import KEYS, Evaluating, parse
from raymerge.sweep.greedy import read_soup
from raymerge.sweep.path import read_path
from raymerge.sweep.search import Search, read_search
from raymerge.sweep.trial import Value

Shape = Literal["axes", "greedy_soup", "path"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
SWEEP_KEYS = (*SHAPES, "sample", "search", *KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What a sweep block says."""

    shape: Shape
    place: Place
    """Where what is under the key of the shape begins."""
    document: Fields
    """The document that it stood in, without it and with what it adds."""
    axes: Mapping[str, Axis]
    """None of a soup."""
    points: tuple[Mapping[str, Value], ...]
    """Those known beforehand: none of a search or a soup."""
    search: Search | None
    evaluating: Evaluating


def read_block(field: Field, top: Fields) -> Block:
    """Read a sweep block.

    Args:
        field: The block.
        top: The document that it stands in, without it.

    Raises:
        RecipeError: File, line, key, what is wrong and what is allowed.
    """
    block = field.node
    if not isinstance(block, Fields):
        raise field.place.error(f"sweep is {block.shown}; allowed: a mapping with axes")
    block.check_keys("sweep", SWEEP_KEYS)
    shape = _shape(block, field.place)
    evaluating = parse(block.fields, field.place)
    _check_evaluating(block, shape, evaluating)
    axes, document = _opened(block, shape, top, evaluating)
    node = block.get("search")
    search = None if node is None else read_search(node, axes, evaluating.by)
    return Block(
        shape=shape,
        place=block.fields[shape].node.place,
        document=document,
        axes=axes,
        points=() if search or not axes else _points(block, axes),
        search=search,
        evaluating=evaluating,
    )


def _shape(block: Fields, place: Place) -> Shape:
    given = [key for key in SHAPES if block.get(key) is not None]
    if not given:
        raise place.error(
            "sweep: axes: missing; write axes: {name: [values]}, or greedy_soup or path"
        )
    ways = [key for key in ("sample", "search") if block.get(key) is not None]
    rivals = ways if given == ["axes"] else [*given, *ways]
    if len(rivals) > 1:
        raise block.place_of(rivals[1]).error(
            f"{rivals[1]}: there is {rivals[0]}, which says what the trials are; give one of the "
            "two"
        )
    return given[0]


def _check_evaluating(block: Fields, shape: Shape, evaluating: Evaluating) -> None:
    key = "search" if shape == "axes" else shape
    if block.get(key) is not None and evaluating.evaluator is None:
        raise block.place_of(key).error(f"{key}: goes by scores; say how: evaluate is missing")
    if shape != "axes" and evaluating.rungs is not None:
        raise block.place_of("subset").error(
            f"subset: {shape} compares its trials on the same examples; leave it out"
        )


def _opened(
    block: Fields, shape: Shape, top: Fields, evaluating: Evaluating
) -> tuple[dict[str, Axis], Fields]:
    """The axes, and the document with what the block adds to it."""
    node = block.fields[shape].node
    if shape == "greedy_soup":
        return {}, read_soup(node, top, evaluating.by)
    if shape == "path":
        document, axes = read_path(node, top)
        return axes, document
    return read_axes(node), top


def _points(block: Fields, axes: Mapping[str, Axis]) -> tuple[Mapping[str, Value], ...]:
    node = block.get("sample")
    if node is None:
        return tuple(grid(axes, block.place_of("axes")))
    if not isinstance(node, Fields):
        raise node.place.error(f"sample is {node.shown}; allowed: {{n: 20, seed: 0}}")
    node.check_keys("sample", ("n", "seed"))
    number = _whole(node, "n", None, MAX_TRIALS)
    return tuple(sample(axes, number=number, seed=_whole(node, "seed", 0, NUM_SEEDS - 1)))


def _whole(fields: Fields, key: str, default: int | None, most: int) -> int:
    node = fields.get(key)
    value = node.value if isinstance(node, Scalar) else default
    least = 1 if default is None else default
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    shown = "missing" if node is None else f"is {node.shown}"
    raise fields.place_of(key).error(f"{key} {shown}; allowed: a whole number, {least} to {most}")
