"""Without a vocabulary policy all sources have the same tokens in the same rows, or none runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymerge.checkpoint.ties import (
    config_sections,
    decide_tie,
    find_embedding,
    vocabulary_tensors,
)
from raymerge.errors import PlanError
from raymerge.plan.stack import cut
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.recipe.resolve import layer_of
from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.vocabulary import read_each

_MAX_SHOWN = 3
_MATRIX = 2


def num_rows(view: View) -> int:
    """Rows of a source's embedding; 0 if it has none."""
    embedding = find_embedding(view)
    return 0 if embedding is None else view.tensors[embedding].shape[0]


def require_same(
    recipe: Recipe, views: Sequence[View], files: Mapping[str, TokenizerFiles]
) -> None:
    """Check that all sources whose rows are merged have the same tokens in the same rows.

    A source without a file that lists its tokens is held to the number of rows alone. Of slices
    only the first and the last give rows, so that what others are taken from may differ.

    Raises:
        PlanError: With the counts and the first tokens that differ.
        SourceError: Tokenizers differ, and one of them cannot be read.
    """
    patterns = (*recipe.keep, *recipe.drop)
    rows = {view.label: _rows(view) for view in views}
    concerned = [
        view for view in views if not all(matches(patterns, name) for name in rows[view.label])
    ]
    if _surely_alike(concerned, rows, files):
        return
    if not recipe.whole:
        concerned = _giving(recipe, views, concerned, rows)
        if _surely_alike(concerned, rows, files):
            return
    readable = _readable(concerned, files)
    sizes = {view.label: _size(view, rows) for view in concerned}
    alike = len({one.fingerprint for one in readable}) <= 1
    vocabularies = [] if alike else read_each(readable)
    seen = [v.within(sizes[one.label]) for v, one in zip(vocabularies, readable, strict=False)]
    if len(set(sizes.values())) > 1 or any(tokens != seen[0] for tokens in seen):
        unknown = next((rows[view.label][0] for view in concerned if not num_rows(view)), None)
        raise _differ(sizes, [one.label for one in readable], seen, unknown)


_Rows = Mapping[str, Sequence[str]]
"""Tensors with a row per token by their source's label, the embedding first."""


def _rows(view: View) -> Sequence[str]:
    """Those known by name, else what is as long as the config's vocabulary and in no layer."""
    if known := vocabulary_tensors(view):
        return known
    said = (section.get("vocab_size") for section in config_sections(view.config))
    sizes = {size for size in said if type(size) is int}
    return [
        name
        for name, one in view.tensors.items()
        if len(one.shape) == _MATRIX and one.shape[0] in sizes and layer_of(name) is None
    ]


def _size(view: View, rows: _Rows) -> int:
    return view.tensors[rows[view.label][0]].shape[0]


def _readable(views: Sequence[View], files: Mapping[str, TokenizerFiles]) -> list[TokenizerFiles]:
    read = [files[view.label] for view in views if view.label in files]
    return [one for one in read if one.any]


def _surely_alike(views: Sequence[View], rows: _Rows, files: Mapping[str, TokenizerFiles]) -> bool:
    """Whether there is nothing to read: as many rows in all, and the same files."""
    sizes = {_size(view, rows) for view in views}
    return len(sizes) <= 1 and len({one.fingerprint for one in _readable(views, files)}) <= 1


def _giving(
    recipe: Recipe, views: Sequence[View], concerned: Sequence[View], rows: _Rows
) -> list[View]:
    """Of the sources of sections those whose rows are merged, and the one that gives the tokens."""
    tie = decide_tie(views)
    patterns = (*recipe.keep, *recipe.drop)
    names = {name for held in rows.values() for name in held} | ({tie.head} if tie else set())
    merged = {name for name in names if not matches(patterns, name)}
    givers = {
        views[position].label
        for part in cut(recipe, views, tie).parts
        if part.section is not None
        for position in part.members
        if not merged.isdisjoint(part.views[position].tensors)
    }
    if givers:
        givers.add(recipe.donor.label)
    return [view for view in concerned if view.label in givers]


def _differ(
    sizes: Mapping[str, int],
    labels: Sequence[str],
    seen: Sequence[Mapping[str, int]],
    unknown: str | None,
) -> PlanError:
    counts = {label: f"{rows} rows" for label, rows in sizes.items()}
    for label, tokens in zip(labels, seen, strict=False):
        counts[label] = f"{len(tokens)} tokens in {sizes[label]} rows"
    shown = ", ".join(f"{label} {text}" for label, text in counts.items())
    advice = (
        "Write `tokenizer_source: base` to keep the tokens of the base (without one, the first "
        "model's), `tokenizer_source: union` for the tokens of all, or keep the embedding and the "
        "head as they are with `keep:`."
    )
    if unknown:
        advice = (
            f"raymerge does not know {unknown} by its name and cannot put its rows in order; copy "
            f"the donor's with `keep: [{unknown}]`, and whatever else has a row per token."
        )
    return PlanError(
        f"the sources differ in their vocabulary: {shown}.{_first_difference(labels, seen)} Rows "
        f"of different tokens cannot be merged. {advice}"
    )


def _first_difference(labels: Sequence[str], seen: Sequence[Mapping[str, int]]) -> str:
    """The first tokens, by id, that two sources do not agree on."""
    for label, tokens in zip(labels, seen, strict=False):
        first = {number: token for token, number in seen[0].items()}
        other = {number: token for token, number in tokens.items()}
        apart = sorted(n for n in first.keys() | other.keys() if first.get(n) != other.get(n))
        if apart:
            listed = ", ".join(
                f"{n} is {_token(first, n)} in {labels[0]} and {_token(other, n)} in {label}"
                for n in apart[:_MAX_SHOWN]
            )
            more = f", and {len(apart) - _MAX_SHOWN} more" if len(apart) > _MAX_SHOWN else ""
            return f" First to differ: {listed}{more}."
    return ""


def _token(tokens: Mapping[int, str], number: int) -> str:
    return repr(tokens[number]) if number in tokens else "no token"
