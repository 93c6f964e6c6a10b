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

from raymerge.errors import RecipeError
from raymerge.recipe.document import Field, Fields, Items, Node, Place, Scalar, read_documents
from raymerge.recipe.parse import read_trees
from raymerge.recipe.render import render
from raymerge.sweep.axes import Axis, Choices
from raymerge.sweep.block import Block, read_block
from raymerge.sweep.evaluation import Evaluating
from raymerge.sweep.expressions import evaluate, fill, names_in
from raymerge.sweep.greedy import GreedySoup
from raymerge.sweep.proposing import OneRound, Proposer
from raymerge.sweep.search import Searching
from raymerge.sweep.trial import Trial, Value

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
    block: Block
    block_at: int
    """Which document had it."""

    @property
    def evaluating(self) -> Evaluating:
        """How its trials are evaluated and chosen."""
        return self.block.evaluating

    def proposer(self, out: str, *, seed: int | None = None) -> Proposer:
        """What names the sweep's trials: here the block's keys choose it.

        Args:
            out: Path or URL that trials without an `out` of their own are put below.
            seed: In place of the recipe's.

        Raises:
            RecipeError: A value does not fit where it stands; with file and line.
            PlanError: What searches is not installed.
        """
        block = self.block
        if seed is not None:
            self._check_seed()
        if block.search:
            return Searching(
                block.search,
                block.axes,
                lambda values: self.trial(values, out, seed=seed),
                by=block.evaluating.by,
                gated=bool(block.evaluating.gates or block.evaluating.at_least),
            )
        if block.shape == "greedy_soup":
            labels = self._ingredients()
            return GreedySoup(labels, lambda some: self._soup(some, labels, out, seed))
        return OneRound(tuple(self.trials(out, seed=seed)))

    def trials(self, out: str, *, seed: int | None = None) -> Iterator[Trial]:
        """A trial per point that is known beforehand, equal ones once.

        Args:
            out: Path or URL that trials without an `out` of their own are put below.
            seed: In place of the recipe's.

        Raises:
            RecipeError: A value does not fit where it stands; with file and line.
        """
        seen = set()
        for values in self.block.points:
            trial = self.trial(values, out, seed=seed)
            if trial.text not in seen:
                seen.add(trial.text)
                yield trial

    def trial(self, values: Mapping[str, Value], out: str, *, seed: int | None = None) -> Trial:
        """The trial of one point; see `trials`."""
        try:
            documents = [_filled(top, values) for top in self.documents]
            return make_trial(documents, self.path, values, out, stem=None, seed=seed)
        except RecipeError as error:
            # Its line is where the value stands, not the axis that it came from.
            at = ", ".join(f"{name}={value}" for name, value in values.items())
            raise RecipeError(f"{error.message} (the trial of {at})", file=error.file) from error

    def _check_seed(self) -> None:
        """Raise RecipeError if the seed is an axis: with one in its place trials are the same."""
        for top in self.documents:
            node = top.get("seed")
            if isinstance(node, Scalar) and isinstance(node.value, str):
                raise node.place.error(
                    f"seed is {node.shown}, an axis of the sweep; leave out --seed, or the axis"
                )

    def _ingredients(self) -> tuple[str, ...]:
        recipe = read_trees(self.documents, render(self.documents), self.path)
        return tuple(source.label for source in recipe.sources)

    def _soup(
        self, some: Sequence[int], labels: Sequence[str], out: str, seed: int | None
    ) -> Trial:
        """The average of some ingredients, by position."""
        documents = list(self.documents)
        top = documents[self.block_at]
        models = top.fields["models"].node
        assert isinstance(models, Items), "read_soup saw to it"
        chosen = Items(models.place, tuple(models.items[position] for position in some))
        fields = {**top.fields, "models": Field(chosen.place, chosen)}
        documents[self.block_at] = Fields(top.place, fields)
        soup = "+".join(labels[position] for position in some)
        values: dict[str, Value] = {"models": len(some), "soup": soup}
        return make_trial(documents, self.path, values, out, stem=None, seed=seed)


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
    position = documents.index(having[0])
    rest = [_without(top, "sweep") for top in documents]
    found = having[0].fields["sweep"]
    block = read_block(found, rest[position])
    rest[position] = block.document
    _check_used(block.axes, rest, block.place)
    template = Template(path=path, documents=tuple(rest), block=block, block_at=position)
    _check_ends(template)
    return template


def _check_ends(template: Template) -> None:
    """Make the trials at the ends of a search's axes: what does not fit is known beforehand."""
    if template.block.search is None:
        return
    axes = template.block.axes
    ends = [axis.values if isinstance(axis, Choices) else axis.ends for axis in axes.values()]
    for i in range(max(map(len, ends))):
        point = (values[min(i, len(values) - 1)] for values in ends)
        template.trial(dict(zip(axes, point, strict=True)), "")


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
