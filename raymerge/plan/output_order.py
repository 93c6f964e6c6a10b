"""One source's tensors with a row per token, put in the rows of the output's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from raymerge.checkpoint.dtypes import DType, promote
from raymerge.checkpoint.ties import TiePolicy, token_axis, vocabulary_tensors
from raymerge.errors import PlanError
from raymerge.plan.graph import Input
from raymerge.plan.remapped import Remapped, encode, stored, used_columns
from raymerge.plan.same_vocabulary import num_rows
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.tokenizer.rows import Table, has_means, is_identity


def in_output_order(
    position: int,
    views: Sequence[View],
    tables: Sequence[Table],
    tie: TiePolicy | None,
    recipe: Recipe,
) -> View:
    """A source with its tensors in the output's rows; those that stay as they are stay stored.

    Args:
        position: Of the source among `views`.
        views: Every source that has an embedding.
        tables: Where each takes its rows from.
        tie: Whose head is whose embedding.
        recipe: Its dtype is that of a mean, unless it keeps the tensor.

    Raises:
        PlanError: A source that rows come from lacks the tensor or has it in another shape, or
            the tensor's values cannot be moved about.
    """
    view, table = views[position], tables[position]
    own = {name: view.tensors[name] for name in vocabulary_tensors(view)}
    if is_identity(table, position, num_rows(view)):
        own = {name: whole for name, whole in own.items() if _rows(name, whole) != len(table)}
    elif tie and view.label in tie.stand_ins:
        # Its embedding stands in for its head, and the heads of others for rows that it lacks.
        own[tie.head] = view.tensors[tie.embedding]
    columns = used_columns(table) or [position]
    runs = encode(table, {column: part for part, column in enumerate(columns)})
    # A mean is rounded where it is written, and not on its way there.
    out = recipe.dtype if has_means(table) else None
    tensors = dict(view.tensors)
    for name, whole in own.items():
        parts = tuple(_part(name, views[column], view, whole, tie) for column in columns)
        tensors[name] = Remapped(
            source=whole.source,
            name=name,
            dtype=_joint_dtype(name, parts, view, None if matches(recipe.keep, name) else out),
            shape=_with_rows(name, whole, len(table)),
            reads=stored(parts),
            parts=parts,
            table=runs,
        )
    return View(label=view.label, config=view.config, tensors=tensors)


def _part(name: str, view: View, for_view: View, whole: Input, tie: TiePolicy | None) -> Input:
    """The tensor of a source that supplies rows: a tied head is its embedding."""
    found = view.tensors.get(name)
    if found is None and tie and name == tie.head:
        found = view.tensors.get(tie.embedding)
    row = _with_rows(name, whole, 1)
    if found is None or _with_rows(name, found, 1) != row:
        row = whole.shape[token_axis(name, whole.shape) + 1 :]
        what = f"has no {name}" if found is None else f"has rows of shape {list(found.shape[1:])}"
        raise PlanError(
            f"{for_view.label}: rows of {name}, of shape {list(row)}, come from {view.label} where "
            f"it lacks a token, and {view.label} {what}; sources must be of one architecture",
            source=view.label,
            tensor=name,
        )
    return found


def _rows(name: str, one: Input) -> int:
    return one.shape[token_axis(name, one.shape)]


def _with_rows(name: str, one: Input, rows: int) -> tuple[int, ...]:
    """The shape of a tensor that has a row per token, with another number of them."""
    axis = token_axis(name, one.shape)
    return (*one.shape[:axis], rows, *one.shape[axis + 1 :])


def _joint_dtype(name: str, parts: Sequence[Input], view: View, out: DType | None) -> DType:
    dtypes = {part.dtype for part in parts}
    if not all(dtype.mergeable for dtype in dtypes):
        shown = ", ".join(sorted(dtypes))
        raise PlanError(
            f"{view.label}: {name} holds {shown} values, whose rows cannot be put in another "
            "order; a vocabulary policy needs floating-point embeddings",
            source=view.label,
            tensor=name,
        )
    joint = promote(dtypes)
    return joint if out in {None, joint} else promote({joint, DType.F32})
