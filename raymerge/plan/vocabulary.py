"""Settle the vocabulary of the output before anything else is taken from the sources.

Without a policy all sources have to have the same tokens in the same rows, or the plan stops here.
With one, every tensor that has a row per token is put in the output's order, the base's included,
so that task vectors, thresholds and draws are taken over the output's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.ties import decide_tie, lone_head, vocabulary_tensors
from raymerge.errors import PlanError
from raymerge.plan.output_order import in_output_order
from raymerge.plan.same_vocabulary import num_rows, require_same
from raymerge.plan.unknown_rows import refuse_unknown_rows
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.tokenizer_keys import TokenizerPolicy, TokenRule
from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.output import OutputVocabulary, output_vocabulary
from raymerge.tokenizer.rows import NONE, Given, is_identity, row_tables
from raymerge.tokenizer.token_ids import Changes, token_ids
from raymerge.tokenizer.vocabulary import AddedToken, Vocabulary, read_each, read_vocabulary

TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a config of a model that sees has what it says of its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """A source's vocabulary beside the output's."""

    label: str
    tokens: int
    """Tokens that have a row."""
    rows: int
    """Rows of its embedding."""
    lacked: int
    """Tokens of the output that it has no row for."""
    left_out: int
    """Rows of its head behind those of its embedding, so of no token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVocabulary:
    """The output's vocabulary."""

    policy: str
    donor: str
    """Label of the source whose tokenizer files the output gets."""
    tokens: int
    rows: int
    resized: bool
    """Whether the source that gives the config has another number of rows."""
    new: tuple[tuple[AddedToken, int], ...]
    """Tokens that the donor's tokenizer.json lacks, with their ids."""
    spelt: int
    """How many of those are ordinary tokens elsewhere, found in a text only as they are spelt."""
    removed: tuple[str, ...]
    """Added tokens of the donor's that have no row anywhere."""
    unknown: tuple[str, ...]
    """Tokens of the output that no source has and the recipe says nothing of: rows of zeros."""
    sources: tuple[SourceRows, ...]
    changes: Changes
    """Token ids that change in config.json and generation_config.json."""


def settle_vocabulary(
    recipe: Recipe,
    views: Sequence[View],
    files: Mapping[str, TokenizerFiles],
    lender: View | None = None,
) -> tuple[list[View], PlannedVocabulary | None]:
    """The sources as the merge sees them once their rows are those of one vocabulary.

    Args:
        recipe: The recipe.
        views: One per `recipe.all_sources`, in that order.
        files: Tokenizer files by label; a source not in it has none.
        lender: A model that is not merged and gives the tokenizer; it has no tensors.

    Raises:
        PlanError: Vocabularies differ and the recipe has no policy, or the policy does not fit.
        SourceError: A tokenizer that has to be read cannot be.
    """
    policy = recipe.tokenizer
    if policy is None:
        require_same(recipe, views, files)
        return list(views), None
    sources = _sources(views, files)
    labels = [source.view.label for source in sources]
    givers = [recipe.donor.label] if lender else [policy.donor, recipe.donor.label]
    for label in givers:
        if label not in labels:
            raise PlanError(
                f"{policy.place}: {label} has no embedding that raymerge knows by its name, so it "
                "cannot give the vocabulary; leave the tokenizer key out",
                source=label,
            )
    outside = _outside(lender, files) if lender else None
    return _settled(recipe, policy, views, sources, outside)


@dataclass(frozen=True, slots=True)
class _Source:
    """A source that has an embedding, or one that is not merged and gives its tokenizer."""

    view: View
    rows: int
    files: TokenizerFiles
    vocabulary: Vocabulary

    @property
    def tokens(self) -> Mapping[str, int]:
        """The tokens that have a row."""
        return self.vocabulary.within(self.rows)


def _sources(views: Sequence[View], files: Mapping[str, TokenizerFiles]) -> list[_Source]:
    holders = [view for view in views if num_rows(view)]
    read = [files.get(view.label, TokenizerFiles(view.label, {})) for view in holders]
    return [
        _Source(view, num_rows(view), one, vocabulary)
        for view, one, vocabulary in zip(holders, read, read_each(read), strict=True)
    ]


def _outside(view: View, files: Mapping[str, TokenizerFiles]) -> _Source:
    """A model that is not merged: its config alone says how many rows its embedding has."""
    own = files.get(view.label, TokenizerFiles(view.label, {}))
    vocabulary = read_vocabulary(own)
    inner = (view.config.get(key) for key in TEXT_SECTIONS)
    sizes = [one.get("vocab_size") for one in (view.config, *inner) if isinstance(one, Mapping)]
    stated = [size for size in sizes if type(size) is int]
    used = max(vocabulary.ids.values(), default=-1) + 1
    return _Source(view, max([used, *stated]), own, vocabulary)


def _settled(
    recipe: Recipe,
    policy: TokenizerPolicy,
    views: Sequence[View],
    sources: Sequence[_Source],
    outside: _Source | None,
) -> tuple[list[View], PlannedVocabulary]:
    labels = [source.view.label for source in sources]
    sizes = [source.rows for source in sources]
    known = [*sources, outside] if outside else sources
    donor = [source.view.label for source in known].index(policy.donor)
    output = output_vocabulary(
        policy,
        [source.vocabulary for source in known],
        [source.rows for source in known],
        donor=donor,
        files=known[donor].files,
    )
    rows = row_tables(
        output.tokens,
        [source.tokens for source in sources],
        sizes,
        base=labels.index(recipe.donor.label),
        donor=None if outside else donor,
        given=_given(policy, sources),
        mean_padding=output.mean_padding,
    )
    tie = decide_tie(views)
    holders = [source.view for source in sources]
    unchanged = all(
        is_identity(table, position, size)
        for position, (table, size) in enumerate(zip(rows.tables, sizes, strict=True))
    )
    remapped: dict[str, View] = {}
    for position, view in enumerate(() if unchanged else holders):
        refuse_unknown_rows(recipe, policy, view, vocabulary_tensors(view))
        remapped[view.label] = in_output_order(position, holders, rows.tables, tie, recipe)
    return [remapped.get(view.label, view) for view in views], PlannedVocabulary(
        policy=policy.shown,
        donor=policy.donor,
        tokens=sum(token is not None for token in output.tokens),
        rows=len(output.tokens),
        resized=len(output.tokens) != sizes[labels.index(recipe.donor.label)],
        new=output.new,
        spelt=output.spelt,
        removed=output.removed,
        unknown=rows.unknown,
        sources=tuple(
            SourceRows(
                label=source.view.label,
                tokens=len(source.tokens),
                rows=source.rows,
                lacked=lacked,
                left_out=0 if unchanged else _behind(source.view),
            )
            for source, lacked in zip(sources, rows.lacked, strict=True)
        ),
        changes=_changes(recipe, policy, output, known),
    )


def _given(policy: TokenizerPolicy, sources: Sequence[_Source]) -> dict[str, Given]:
    return {rule.token: _row_given(rule, sources) for rule in policy.rules}


def _row_given(rule: TokenRule, sources: Sequence[_Source]) -> Given:
    if rule.kind != "row":
        return Given(source=None, row=NONE, force=rule.force, zero=rule.kind == "zero")
    labels = [source.view.label for source in sources]
    if rule.source not in labels:
        raise PlanError(f"{rule.place}: {rule.source} has no embedding to take a row from")
    position = labels.index(rule.source)
    source = sources[position]
    wanted = rule.token if rule.source_token is None else rule.source_token
    row = wanted if isinstance(wanted, int) else source.vocabulary.ids.get(wanted, NONE)
    if not 0 <= row < source.rows:
        raise PlanError(
            f"{rule.place}: tokens: {rule.token!r} takes its row from {wanted!r} of "
            f"{rule.source}, which has no such row among its {source.rows}",
            source=rule.source,
        )
    return Given(source=position, row=row, force=rule.force)


def _changes(
    recipe: Recipe, policy: TokenizerPolicy, output: OutputVocabulary, sources: Sequence[_Source]
) -> Changes:
    """Token ids of the donor's settings, where the tokenizer is another source's."""
    if recipe.donor.label == policy.donor:
        return {}
    by_label = {source.view.label: source for source in sources}
    donor, other = by_label[recipe.donor.label], by_label[policy.donor]
    return token_ids(
        (donor.view.config, donor.files),
        (other.view.config, other.files),
        before={number: token for token, number in donor.vocabulary.ids.items()},
        after={token: row for row, token in enumerate(output.tokens) if token is not None},
    )


def _behind(view: View) -> int:
    """Rows of a head that was padded by itself behind those of the embedding."""
    head = lone_head(view)
    return max(0, view.tensors[head].shape[0] - num_rows(view)) if head else 0
