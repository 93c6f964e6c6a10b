"""What a recipe makes of the tokenizer: the vocabulary's rows, and the chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymerge.plan.views import View
from raymerge.plan.vocabulary import PlannedVocabulary, settle_vocabulary
from raymerge.recipe import Recipe
from raymerge.tokenizer.files import TokenizerFiles
from raymerge.tokenizer.template import template_of

_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTemplate:
    """The output's chat template."""

    name: str
    """As the recipe calls it."""
    source: str | None
    """Label of the source whose it is."""
    text: str | None
    """The jinja; None where no source has one, and the output gets none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTokenizer:
    """The output's tokenizer, as far as it is not a copy of the donor's."""

    donor: str
    """Label of the source whose tokenizer files the output gets."""
    vocabulary: PlannedVocabulary | None
    template: PlannedTemplate | None

    @property
    def identity(self) -> tuple[object, ...]:
        """What names it in the plan's digest, besides the rows of the tensors."""
        vocabulary = self.vocabulary
        text = self.template.text if self.template else None
        if vocabulary is None:
            return self.donor, text
        return self.donor, text, vocabulary.new, vocabulary.removed, vocabulary.changes


def settle_tokenizer(
    recipe: Recipe,
    views: Sequence[View],
    files: Mapping[str, TokenizerFiles],
    lender: View | None = None,
) -> tuple[list[View], PlannedTokenizer | None]:
    """The sources in the output's rows, and what becomes of the tokenizer.

    Args:
        recipe: The recipe.
        views: One per `recipe.all_sources`, in that order.
        files: Tokenizer files by label; a source not in it has none.
        lender: A model that is not merged and gives the tokenizer; it has no tensors.

    Raises:
        PlanError: Vocabularies differ and the recipe has no policy, or the policy does not fit.
        SourceError: A tokenizer that has to be read cannot be.
    """
    seen, vocabulary = settle_vocabulary(recipe, views, files, lender)
    template = _template(recipe, files)
    if vocabulary is None and template is None:
        return seen, None
    donor = vocabulary.donor if vocabulary else recipe.donor.label
    return seen, PlannedTokenizer(donor=donor, vocabulary=vocabulary, template=template)


def _template(recipe: Recipe, files: Mapping[str, TokenizerFiles]) -> PlannedTemplate | None:
    asked = recipe.chat_template
    if asked is None:
        return None
    if asked.text is not None:
        return PlannedTemplate(name=asked.name, source=None, text=asked.text)
    labels = [source.label for source in recipe.all_sources if source.label in files]
    texts = {label: text for label in labels if (text := template_of(files[label]))}
    if not texts:
        lent = [ref.label for ref in recipe.lenders if ref.label in files]
        texts = {label: text for label in lent if (text := template_of(files[label]))}
    if not texts:
        return PlannedTemplate(name=asked.name, source=None, text=None)
    # Of equally many the first counted comes first: that of the first source.
    text = Counter(texts.values()).most_common(1)[0][0]
    label = next(label for label, one in texts.items() if one == text)
    return PlannedTemplate(name=asked.name, source=label, text=text)


def tokenizer_lines(planned: PlannedTokenizer | None) -> dict[str, list[str]]:
    """What a plan shows of it: a section's lines by its title."""
    sections = {}
    if planned and planned.vocabulary:
        sections["vocabulary"] = _vocabulary_lines(planned.vocabulary)
    if planned and planned.template:
        template = planned.template
        whose = f"that of {template.source}" if template.source else template.name
        none = "auto: no source has one, so none is written"
        sections["chat template"] = [none if template.text is None else whose]
    return sections


def _vocabulary_lines(vocabulary: PlannedVocabulary) -> list[str]:
    padding = vocabulary.rows - vocabulary.tokens
    lines = [
        f"{vocabulary.policy}: {vocabulary.tokens:,} tokens in {vocabulary.rows:,} rows"
        + (f", {padding:,} of padding" if padding else "")
    ]
    if vocabulary.new:
        shown = [f"{token.content!r} {number}" for token, number in vocabulary.new]
        lines.append(f"added {len(shown):,}: {_listed(shown)}")
    if vocabulary.spelt:
        lines.append(
            f"{vocabulary.spelt:,} of them are ordinary tokens elsewhere: without their merges "
            "they are found in a text only as they are spelt"
        )
    if vocabulary.removed:
        names = list(map(repr, vocabulary.removed))
        lines.append(f"left out for want of a row {len(names):,}: {_listed(names)}")
    if vocabulary.unknown:
        names = list(map(repr, vocabulary.unknown))
        lines.append(
            f"in no model that is merged, so rows of zeros {len(names):,}: {_listed(names)}"
        )
    lines += [
        f"{source.label}: {source.tokens:,} tokens in {source.rows:,} rows, lacks "
        f"{source.lacked:,} of the output's"
        + (f"; {source.left_out:,} more rows of its head are left out" if source.left_out else "")
        for source in vocabulary.sources
    ]
    return lines + [
        f"{file}: {key} becomes {value}"
        for file, changed in vocabulary.changes.items()
        for key, value in changed.items()
    ]


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_SHOWN
    return ", ".join(texts[:_MAX_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def tokenizer_document(planned: PlannedTokenizer | None) -> dict[str, Any]:
    """The same for programs."""
    vocabulary = planned.vocabulary if planned else None
    template = planned.template if planned else None
    return {
        "vocabulary": vocabulary
        and {
            "policy": vocabulary.policy,
            "donor": vocabulary.donor,
            "tokens": vocabulary.tokens,
            "rows": vocabulary.rows,
            "added": {token.content: number for token, number in vocabulary.new},
            "removed": list(vocabulary.removed),
            "unknown": list(vocabulary.unknown),
            "changes": vocabulary.changes,
            "sources": [asdict(source) for source in vocabulary.sources],
        },
        "chat_template": template and {"name": template.name, "source": template.source},
    }
