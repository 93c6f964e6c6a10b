"""Without a vocabulary policy all sources have the same tokens in the same rows, or none runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raymerge.checkpoint.ties import find_embedding, vocabulary_tensors
from raymerge.errors import PlanError
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.vocabulary import read_each

_MAX_SHOWN = 3


def num_rows(view: View) -> int:
    """Rows of a source's embedding; 0 if it has none."""
    embedding = find_embedding(view)
    return 0 if embedding is None else view.tensors[embedding].shape[0]


def require_same(
    recipe: Recipe, views: Sequence[View], files: Mapping[str, TokenizerFiles]
) -> None:
    """Check that all sources whose rows are merged have the same tokens in the same rows.

    A source without a file that lists its tokens is held to the number of rows alone.

    Raises:
        PlanError: With the counts and the first tokens that differ.
        SourceError: Tokenizers differ, and one of them cannot be read.
    """
    patterns = (*recipe.keep, *recipe.drop)
    concerned = [
        view
        for view in views
        if not all(matches(patterns, name) for name in vocabulary_tensors(view))
    ]
    if len(concerned) < 2:  # noqa: PLR2004 - one agrees with itself
        return
    read = [files[view.label] for view in concerned if view.label in files]
    readable = [one for one in read if one.any]
    sizes = {view.label: num_rows(view) for view in concerned}
    alike = len({one.fingerprint for one in readable}) <= 1
    if alike and len(set(sizes.values())) == 1:
        return
    vocabularies = [] if alike else read_each(readable)
    seen = [v.within(sizes[one.label]) for v, one in zip(vocabularies, readable, strict=False)]
    if len(set(sizes.values())) > 1 or any(tokens != seen[0] for tokens in seen):
        raise _differ(sizes, [one.label for one in readable], seen)


def _differ(
    sizes: Mapping[str, int], labels: Sequence[str], seen: Sequence[Mapping[str, int]]
) -> PlanError:
    counts = {label: f"{rows} rows" for label, rows in sizes.items()}
    for label, tokens in zip(labels, seen, strict=False):
        counts[label] = f"{len(tokens)} tokens in {sizes[label]} rows"
    shown = ", ".join(f"{label} {text}" for label, text in counts.items())
    return PlanError(
        f"the sources differ in their vocabulary: {shown}.{_first_difference(labels, seen)} Rows "
        "of different tokens cannot be merged. Write `tokenizer_source: base` to keep the tokens "
        "of the base (without one, the first model's), `tokenizer_source: union` for the tokens "
        "of all, or keep the embedding and the head as they are with `keep:`."
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
