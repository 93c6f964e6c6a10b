"""Which tensor of which source goes into which output tensor: by name and shape, nothing else.

No table of architectures. Sources of one skeleton have the same names; whatever one has and another
lacks is an error until the recipe says what is to become of it. Slices and modules are matched like
whole models, each among its own sources (`plan.stack`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.checkpoint.ties import TiePolicy, decide_tie
from raymerge.errors import PlanError
from raymerge.plan.alike import check_alike
from raymerge.plan.graph import Input
from raymerge.plan.parts import Part, Stack
from raymerge.plan.stack import cut
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The skeleton of the output."""

    parts: tuple[Part, ...]
    """Each with its tensors, in the order of the output."""
    stacks: tuple[Stack, ...]
    """The stacks of layers that slices build."""
    dropped: tuple[str, ...]
    """Tensors of any source that the recipe leaves out."""
    tie: TiePolicy | None

    @property
    def names(self) -> tuple[str, ...]:
        """Tensors to write, in the donor's order; of slices, in the order of the layers."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def kept(self) -> frozenset[str]:
        """Those copied from the donor."""
        return frozenset[str]().union(*(part.kept for part in self.parts))


def match(recipe: Recipe, views: Sequence[View], *, stored: Sequence[View] | None = None) -> Match:
    """Decide the names of the output.

    Args:
        recipe: The recipe.
        views: One per `recipe.all_sources`, in that order.
        stored: The same before rows were put in another order, which is where ties are seen.

    Raises:
        PlanError: A source lacks a tensor or has one more, or a pattern covers nothing.
    """
    tie = decide_tie(stored or views)
    cut_up = cut(recipe, views, tie)
    every = [_names(part) for part in cut_up.parts]
    _check_patterns(recipe, "drop", recipe.drop, (name for names in every for name in names))
    _check_patterns(
        recipe, "keep", recipe.keep, (name for part in cut_up.parts for name in _donated(part, tie))
    )
    dropped = dict.fromkeys(n for names in every for n in names if matches(recipe.drop, n))
    if tie and tie.tied and tie.embedding in dropped and tie.head not in dropped:
        raise PlanError(
            f"{recipe.path}: drop: {tie.embedding} is also the head, {tie.head}, which is tied to "
            "it; drop both, or neither",
            tensor=tie.embedding,
        )
    left_out = dropped.keys() | ({tie.head} if tie and tie.tied else set())
    parts = [
        _settle(recipe, part, [name for name in names if name not in left_out], tie)
        for part, names in zip(cut_up.parts, every, strict=True)
    ]
    for stack in cut_up.stacks:
        own = [part for part in parts if part.placed and part.placed.stack == stack.name]
        check_alike(recipe, views, stack, own, donor=_position(views, recipe.donor.label))
    return Match(
        parts=tuple(part for part in parts if part.names),
        stacks=tuple(cut_up.stacks),
        dropped=tuple(dropped),
        tie=tie,
    )


def _position(views: Sequence[View], label: str) -> int:
    return [view.label for view in views].index(label)


def _names(part: Part) -> list[str]:
    """All tensors that any source has for the part: the donor's order, of slices the layers'."""
    views = (part.views[part.donor], *part.views)
    return list(dict.fromkeys(name for view in views for name in view.tensors))


def _donated(part: Part, tie: TiePolicy | None) -> dict[str, None]:
    """The tensors that the part's donor could give."""
    donor = part.views[part.donor]
    names = dict.fromkeys(donor.tensors)
    if tie and donor.label in tie.stand_ins and tie.embedding in names:
        names[tie.head] = None
    return names


def _settle(recipe: Recipe, part: Part, names: Sequence[str], tie: TiePolicy | None) -> Part:
    """The part with its tensors and with those that are copied.

    Raises:
        PlanError: A source lacks one, or nothing in the recipe speaks of one.
    """
    donated = _donated(part, tie) if recipe.keep else {}
    kept = frozenset(name for name in names if name in donated and matches(recipe.keep, name))
    if part.section is None and len(kept) < len(names):
        raise _unlisted(recipe, [name for name in names if name not in kept])
    for position in part.members:
        _check_complete(part.views[position], part.views[part.donor], names, kept, tie)
    return replace(part, names=tuple(names), kept=kept)


def _unlisted(recipe: Recipe, names: Sequence[str]) -> PlanError:
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return PlanError(
        f"{recipe.path}: modules: {len(names)} tensors are in none of its modules: {listed}. "
        f"To copy them from {recipe.donor.label} write `keep:` with their names or a pattern, to "
        "leave them out `drop:`, to merge them list their module",
        tensor=names[0],
    )


def inputs_of(
    name: str, views: Sequence[View], order: Iterable[int], tie: TiePolicy | None
) -> tuple[Input, ...]:
    """The tensors that go into the output tensor `name`, from the sources at `order`."""
    inputs = []
    for position in order:
        view = views[position]
        # Views of slices, of modules and of other vocabularies have the head already.
        stands_in = tie and name not in view.tensors and view.label in tie.stand_ins
        inputs.append(view.tensors[tie.embedding if tie and stands_in else name])
    return tuple(inputs)


def check_shapes(reads: Mapping[str, Sequence[Input]], views: Sequence[View]) -> None:
    """Raise PlanError unless the inputs of each tensor have one shape."""
    differing = [
        (name, inputs[0], another)
        for name, inputs in reads.items()
        if (another := next((one for one in inputs if one.shape != inputs[0].shape), None))
    ]
    if not differing:
        return
    name, first, another = differing[0]
    one, other = _owner(first, views), _owner(another, views)
    more = ""
    if others := [found for found, *_ in differing[1:]]:
        shown = ", ".join(others[:2]) + (", ..." if others[2:] else "")
        more = f" So do {len(others)} more: {shown}"
    raise PlanError(
        f"{name} has shape {_shape(first)} in {one} and {_shape(another)} in {other}; sources must "
        f"be of one architecture. To leave it out write `drop: [{name}]`, to copy the donor's "
        f"write `keep: [{name}]`.{more}",
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
    recipe: Recipe, key: str, patterns: Sequence[str], every: Iterable[str]
) -> None:
    names = dict.fromkeys(every) if patterns else {}
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
