"""A recipe with a `sweep:` block: one recipe of many, each with values for its axes.

`$name` stands where a value may. Under `parameters`, and for `seed`, `trim`, `rescale` and
`layer_range`, it may be part of arithmetic; elsewhere it is part of the text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raymerge.recipe.document import Field, Fields, Items, Node, Place, Scalar, read_documents
from raymerge.recipe.parse import NUM_SEEDS, read_trees
from raymerge.recipe.render import render
from raymerge.sweep.axes import MAX_TRIALS, Axis, grid, read_axes, sample
from raymerge.sweep.evaluation import KEYS, Evaluating, parse
from raymerge.sweep.expressions import evaluate, fill, names_in
from raymerge.sweep.proposing import OneRound, Proposer
from raymerge.sweep.trial import Trial, Value

SWEEP_KEYS = ("axes", "sample", *KEYS)
_NUMERIC = frozenset({"parameters", "seed", "trim", "rescale", "layer_range"})
_TEXTUAL = frozenset({"filter"})
_MAX_NAME = 60
_DIGEST_DIGITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A recipe whose values are open, and which values it is to be merged with."""

    path: str
    documents: tuple[Fields, ...]
    """Without the block."""
    axes: Mapping[str, Axis]
    points: tuple[Mapping[str, Value], ...]
    evaluating: Evaluating
    """How its trials are evaluated and chosen."""

    def proposer(self, out: str, *, seed: int | None = None) -> Proposer:
        """What names the sweep's trials: here the block's keys choose it.

        Args:
            out: Path or URL that trials without an `out` of their own are put below.
            seed: In place of the recipe's.

        Raises:
            RecipeError: A value does not fit where it stands; with file and line.
        """
        return OneRound(tuple(self.trials(out, seed=seed)))

    def trials(self, out: str, *, seed: int | None = None) -> Iterator[Trial]:
        """A trial per point, equal ones once.

        Args:
            out: Path or URL that trials without an `out` of their own are put below.
            seed: In place of the recipe's.

        Raises:
            RecipeError: A value does not fit where it stands; with file and line.
        """
        seen = set()
        for values in self.points:
            documents = [_filled(top, values) for top in self.documents]
            trial = make_trial(documents, self.path, values, out, stem=None, seed=seed)
            if trial.text not in seen:
                seen.add(trial.text)
                yield trial


def read_template(text: str, path: str) -> Template | None:
    """Read a recipe with a `sweep:` block; None where it has none.

    Raises:
        RecipeError: The block is wrong, an axis is used nowhere, or a name is no axis.
    """
    documents = read_documents(text, path)
    having = [top for top in documents if "sweep" in top.fields]
    if not having:
        return None
    if len(having) > 1:
        place = having[1].place_of("sweep")
        raise place.error("sweep: a second block; one holds for all documents of a recipe")
    block = having[0].fields["sweep"]
    if not isinstance(block.node, Fields):
        raise block.place.error(f"sweep is {block.node.shown}; allowed: a mapping with axes")
    block.node.check_keys("sweep", SWEEP_KEYS)
    if (node := block.node.get("axes")) is None:
        raise block.place.error("sweep: axes: missing; write axes: {name: [values]}")
    axes = read_axes(node)
    rest = tuple(_without(top, "sweep") for top in documents)
    _check_used(axes, rest, node.place)
    return Template(
        path=path,
        documents=rest,
        axes=axes,
        points=_points(block.node, axes),
        evaluating=parse(block.node.fields, block.place),
    )


def make_trial(
    documents: Sequence[Fields],
    path: str,
    values: Mapping[str, Value],
    out: str,
    *,
    stem: str | None,
    seed: int | None = None,
) -> Trial:
    """A trial of a recipe in which nothing is open.

    Args:
        documents: Of the recipe.
        path: What messages call it.
        values: That it has for the axes.
        out: Path or URL it is put below, unless it says otherwise.
        stem: Its name; None makes one of the values and a digest of the recipe.
        seed: In place of the recipe's.
    """
    if seed is not None:
        documents = [_with_seed(top, seed) for top in documents]
    text = render(documents)
    recipe = read_trees(documents, text, path)
    name = stem or f"{_slug(values)}-{_digest(documents)}"
    place = recipe.out or f"{out.rstrip('/')}/{name}"
    return Trial(name=name, recipe=recipe, text=text, out=place, values=values)


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


def _without(top: Fields, key: str) -> Fields:
    return Fields(top.place, {name: f for name, f in top.fields.items() if name != key})


def _with_seed(top: Fields, seed: int) -> Fields:
    number = Scalar(top.place_of("seed"), seed, str(seed), quoted=False)
    return Fields(top.place, {**top.fields, "seed": Field(number.place, number)})


def _scalars(node: Node) -> Iterator[Scalar]:
    if isinstance(node, Scalar):
        yield node
    elif isinstance(node, Items):
        for item in node.items:
            yield from _scalars(item)
    else:
        for field in node.fields.values():
            yield from _scalars(field.node)


def _check_used(axes: Mapping[str, Axis], documents: Sequence[Fields], place: Place) -> None:
    used: set[str] = set()
    for top in documents:
        for scalar in _scalars(top):
            found = names_in(scalar.text) if isinstance(scalar.value, str) else set()
            for name in found - axes.keys():
                fill(f"${name}", dict.fromkeys(axes, 0), scalar.place)
            used |= found
    for name in axes:
        if name not in used:
            raise place.error(
                f"axes: {name} is used nowhere in the recipe; write ${name} where its value belongs"
            )


def _filled(top: Fields, values: Mapping[str, Value]) -> Fields:
    filled = _fill(top, values, numeric=False)
    assert isinstance(filled, Fields)
    return filled


def _fill(node: Node, values: Mapping[str, Value], *, numeric: bool) -> Node:
    if isinstance(node, Items):
        items = (_fill(item, values, numeric=numeric) for item in node.items)
        return Items(node.place, tuple(items))
    if isinstance(node, Fields):
        fields = {}
        for key, field in node.fields.items():
            inside = (numeric or key in _NUMERIC) and key not in _TEXTUAL
            fields[key] = Field(field.place, _fill(field.node, values, numeric=inside))
        return Fields(node.place, fields)
    if not isinstance(node.value, str) or "$" not in node.value:
        return node
    read = evaluate if numeric and names_in(node.value) else fill
    return _as_scalar(read(node.value, values, node.place), node.place)


def _as_scalar(value: Value, place: Place) -> Scalar:
    if isinstance(value, str):
        return Scalar(place, value, value, quoted=True)
    return Scalar(place, value, json.dumps(value), quoted=False)


def _slug(values: Mapping[str, Value]) -> str:
    """Values as part of a file name, cut where there are many: the digest tells them apart."""
    shown = "_".join(f"{name}={_short(value)}" for name, value in values.items())
    return shown[:_MAX_NAME].rstrip("_.-=") or "trial"


def _short(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    last = str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9.]+", "-", last).strip("-.")


def _digest(documents: Sequence[Fields]) -> str:
    """Equal for recipes that say the same, however they are laid out."""
    canonical = json.dumps([_plain(top) for top in documents], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_DIGITS]


def _plain(node: Node) -> object:
    if isinstance(node, Fields):
        return {key: _plain(field.node) for key, field in node.fields.items()}
    if isinstance(node, Items):
        return [_plain(item) for item in node.items]
    if isinstance(node.value, float) and node.value.is_integer():
        return int(node.value)
    return node.value
