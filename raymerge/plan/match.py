"""Which tensor of which source goes into which output tensor: by name and shape, nothing else.

No table of architectures. Sources of one skeleton have the same names; whatever one has and another
lacks is an error until the recipe says what is to become of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.ties import TiePolicy, decide_tie
from raymerge.errors import PlanError
from raymerge.plan.graph import Input
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The skeleton of the output."""

    names: tuple[str, ...]
    """Tensors to write, in the donor's order."""
    kept: frozenset[str]
    """Those copied from the donor."""
    dropped: tuple[str, ...]
    """Tensors of any source that the recipe leaves out."""
    tie: TiePolicy | None


def match(recipe: Recipe, views: Sequence[View]) -> Match:
    """Decide the names of the output.

    Args:
        recipe: The recipe.
        views: One per `recipe.all_sources`, in that order.

    Raises:
        PlanError: A source lacks a tensor or has one more, or a pattern covers nothing.
    """
    donor = next(c for c in views if c.label == recipe.donor.label)
    every = dict.fromkeys(name for view in (donor, *views) for name in view.tensors)
    tie = decide_tie(views)
    in_donor = dict.fromkeys(donor.tensors)
    if tie and donor.label in tie.stand_ins:
        in_donor[tie.head] = None
    _check_patterns(recipe, "drop", recipe.drop, every)
    _check_patterns(recipe, "keep", recipe.keep, in_donor)
    dropped = frozenset(name for name in every if matches(recipe.drop, name))
    kept = frozenset(
        name for name in in_donor if name not in dropped and matches(recipe.keep, name)
    )
    if tie and tie.tied and tie.embedding in dropped and tie.head not in dropped:
        raise PlanError(
            f"{recipe.path}: drop: {tie.embedding} is also the head, {tie.head}, which is tied to "
            "it; drop both, or neither",
            tensor=tie.embedding,
        )
    tied_heads = {tie.head} if tie and tie.tied else set()
    names = tuple(name for name in every if name not in dropped and name not in tied_heads)
    for view in views:
        _check_complete(view, donor, names, kept, tie)
    return Match(names=names, kept=kept, dropped=tuple(n for n in every if n in dropped), tie=tie)


def inputs_of(
    name: str, views: Sequence[View], order: Iterable[int], tie: TiePolicy | None
) -> tuple[Input, ...]:
    """The tensors that go into the output tensor `name`, from the sources at `order`."""
    inputs = []
    for position in order:
        view = views[position]
        stands_in = tie and name == tie.head and view.label in tie.stand_ins
        inputs.append(view.tensors[tie.embedding if tie and stands_in else name])
    return tuple(inputs)


def check_shapes(name: str, inputs: Sequence[Input], views: Sequence[View]) -> None:
    """Raise unless all inputs have one shape."""
    first = inputs[0]
    for another in inputs[1:]:
        if another.shape != first.shape:
            one, other = _owner(first, views), _owner(another, views)
            raise PlanError(
                f"{name} has shape {_shape(first)} in {one} and {_shape(another)} in "
                f"{other}; sources must be of one architecture. To leave it out write "
                f"`drop: [{name}]`, to copy the donor's write `keep: [{name}]`.",
                source=other,
                tensor=name,
            )


def _owner(one: Input, views: Sequence[View]) -> str:
    """What the source is called that an input is of."""
    return next(v.label for v in views if any(held is one for held in v.tensors.values()))


def twins(matched: Match, views: Sequence[View]) -> tuple[tuple[Input, Input], ...]:
    """Heads that are tied by their config and stored all the same: the run compares their bytes.

    A head that the recipe drops is none of the merge's business.
    """
    tie = matched.tie
    if tie is None or tie.head in matched.dropped:
        return ()
    pairs = []
    for view in views:
        if view.label in tie.must_equal and tie.embedding in view.tensors:
            head, embedding = view.tensors[tie.head], view.tensors[tie.embedding]
            if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
                raise PlanError(
                    f"{view.label}: config.json says the head is tied, but {tie.head} is "
                    f"{head.dtype} {_shape(head)} and {tie.embedding} is {embedding.dtype} "
                    f"{_shape(embedding)}",
                    source=view.label,
                    tensor=tie.head,
                )
            pairs.append((head, embedding))
    return tuple(pairs)


def _check_patterns(
    recipe: Recipe, key: str, patterns: Iterable[str], names: Mapping[str, None]
) -> None:
    whose = "any source" if key == "drop" else f"{recipe.donor.label}, which is copied from,"
    for pattern in patterns:
        if not any(matches((pattern,), name) for name in names):
            raise PlanError(
                f"{recipe.path}: {key}: no tensor of {whose} matches {pattern!r}; tensors are "
                f"named like {next(iter(names))!r}, and `*` stands for any characters"
            )


def _check_complete(
    view: View,
    donor: View,
    names: Sequence[str],
    kept: frozenset[str],
    tie: TiePolicy | None,
) -> None:
    absent = [name for name in names if name not in view.tensors and name not in kept]
    if tie and view.label in tie.stand_ins:
        absent = [name for name in absent if name != tie.head]
    if not absent:
        return
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if absent[3:] else "")
    extra = [name for name in absent if name not in donor.tensors]
    if view is donor or len(extra) == len(absent):
        accept = "To leave them out write `drop:` with their names or a pattern"
    else:
        accept = (
            f"To copy them from {donor.label} write `keep:` with their names or a pattern, to "
            "leave them out `drop:`"
        )
    raise PlanError(
        f"{view.label} lacks {len(absent)} tensors that other sources have: {listed}. {accept}; "
        f"for the first: `[{absent[0]}]`.",
        source=view.label,
        tensor=absent[0],
    )


def _shape(tensor: Input) -> str:
    return str(list(tensor.shape))
