"""What an inspection's figures mean for a merge. Pure: figures in, sentences out.

The thresholds are rules of thumb, which is why every sentence has its figures in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf, sqrt

from raymerge.kernels.compare import LARGE_DELTA
from raymerge.runtime.inspection import (
    Finding,
    GroupFigures,
    PairFigures,
    SourceFacts,
    SourceFigures,
    Uncompared,
)
from raymerge.tokenizer.files import TEMPLATE_JINJA, TEMPLATE_JSON, TOKENIZER_FILES

FAR = 0.7
"""||delta|| / ||base|| from which a base looks wrong: of two models trained apart it is 1.4, and
what fine-tuning adds is a small part of the weights it started from."""
ALIKE = 0.8
"""Cosine from which deltas look like one offset with a little added: what two of them share is then
twice as long as what sets them apart."""
APART = 0.5
"""Cosine of weights below which sources look trained apart."""
_TOKENIZER = TOKENIZER_FILES - {TEMPLATE_JINJA, TEMPLATE_JSON}


def findings(
    facts: Sequence[SourceFacts],
    total: GroupFigures,
    matrices: GroupFigures,
    uncompared: Sequence[Uncompared],
    differences: Sequence[str],
) -> tuple[Finding, ...]:
    """What a user should know, warnings first.

    Args:
        facts: The sources, the base first if there is one.
        total: Figures over all tensors.
        matrices: Figures over tensors of two dimensions or more. A norm's weights lie near 1 in any
            model, and would make strangers look alike.
        uncompared: What was left out.
        differences: Lines on configs and tokenizers.
    """
    base = next((source.label for source in facts if source.is_base), None)
    found = [
        *(_of_pairs(matrices, base)),
        *(_of_sources(total, matrices, base) if base else ()),
        *_of_files(facts, differences),
        *_of_uncompared(uncompared),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


def _of_sources(total: GroupFigures, matrices: GroupFigures, base: str) -> Iterator[Finding]:
    for source in matrices.sources:
        if source.norm_ratio is not None and source.norm_ratio >= FAR:
            yield _wrong_base(source, base)
    for source in total.sources:
        if source.parameters and source.norm == 0:
            message = f"{source.label} holds the same weights as {base}; its delta is zero"
            yield Finding("same_weights", "warning", (source.label, base), message)
        elif source.max_delta is not None and source.max_delta > LARGE_DELTA:
            yield _large_deltas(source)


def _wrong_base(source: SourceFigures, base: str) -> Finding:
    return Finding(
        "wrong_base",
        "warning",
        (source.label, base),
        f"{base} is probably not what {source.label} was trained from: over all matrices "
        f"||delta|| is {source.norm_ratio:.2f} of ||base||. Fine-tuning moves weights by a small "
        "part of their norm; two models trained apart are about 1.4 apart",
    )


def _large_deltas(source: SourceFigures) -> Finding:
    return Finding(
        "large_deltas",
        "note",
        (source.label,),
        f"{source.label}: the largest |delta| is {source.max_delta:.3g}, and "
        f"{source.large_share:.3%} of its entries are above {LARGE_DELTA:g}. DARE fails where "
        "deltas are large or few of them are kept (arXiv:2410.09344): keep more of them, or choose "
        "by magnitude as ties does",
    )


def _of_pairs(matrices: GroupFigures, base: str | None) -> Iterator[Finding]:
    for pair in matrices.pairs:
        one, other = pair.sources
        if pair.cosine is None:
            continue
        if (base is None and pair.distance == 0) or pair.cosine == 1.0:
            message = f"{one} and {other} hold the same weights, or deltas in one direction"
            yield Finding("same_weights", "warning", pair.sources, message)
        elif base is not None and pair.cosine >= ALIKE:
            yield _shared_offset(pair, base)
        elif base is None and pair.cosine < APART:
            message = (
                f"{one} and {other} look trained apart: over all matrices the cosine of their "
                f"weights is {pair.cosine:.2f}; that of two fine-tunes of one model is close to 1"
            )
            yield Finding("trained_apart", "warning", pair.sources, message)


def _shared_offset(pair: PairFigures, base: str) -> Finding:
    one, other = pair.sources
    assert pair.cosine is not None
    times = sqrt(pair.cosine / (1 - pair.cosine)) if pair.cosine < 1 else inf
    return Finding(
        "shared_offset",
        "warning",
        (*pair.sources, base),
        f"{one} and {other} have much the same delta, their cosine is {pair.cosine:.2f}: what they "
        f"share is {times:.1f} times as long as what sets them apart. Either one was made from the "
        f"other, or both come from a model that was itself trained from {base} (an instruct model, "
        "say), and that one is the base to give: a sum of deltas would add the shared part once "
        "per source",
    )


def _of_files(facts: Sequence[SourceFacts], differences: Sequence[str]) -> Iterator[Finding]:
    for source in facts:
        if source.quantisation:
            severity, done = (
                ("note", "Its codes are widened by their scales, as in a merge")
                if source.widened
                else ("warning", "Codes are not compared")
            )
            message = f"{source.label} is quantised: {source.quantisation}. {done}"
            yield Finding("quantised", severity, (source.label,), message)
    everyone = tuple(source.label for source in facts)
    rows = {source.label: source.vocabulary_rows for source in facts}
    if len(set(rows.values())) > 1:
        message = f"vocabularies differ: the embedding has {_said(rows)} rows"
        yield Finding("vocabulary", "warning", everyone, message)
    sizes = {source.label: source.vocab_size for source in facts}
    if len(set(sizes.values())) > 1 and sizes != rows:
        message = f"vocabularies differ: config.json says vocab_size is {_said(sizes)}"
        yield Finding("vocabulary", "note", everyone, message)
    files = [line.partition(":")[0] for line in differences]
    if differing := [name for name in files if name in _TOKENIZER]:
        message = f"tokenizers differ in {', '.join(differing)}; the donor's are what a merge gets"
        yield Finding("tokenizer", "note", everyone, message)
    templates = {source.label: source.chat_template for source in facts}
    if len(set(templates.values())) > 1:
        message = f"chat templates differ, by sha256: {_said(templates)}"
        yield Finding("chat_template", "note", everyone, message)


def _of_uncompared(uncompared: Sequence[Uncompared]) -> Iterator[Finding]:
    broken = [one for one in uncompared if one.reason == "holds NaN or Inf"]
    for one in broken:
        message = f"{one.source}: {one.tensor} holds NaN or Inf and is in no figure"
        yield Finding("not_finite", "warning", (one.source,), message)
    counts = Counter(one.source for one in uncompared if one not in broken)
    for label, count in counts.items():
        first = next(one for one in uncompared if one.source == label and one not in broken)
        tensors = "1 tensor is" if count == 1 else f"{count} tensors are"
        message = f"{label}: {tensors} not compared, {first.tensor} first: {first.reason}"
        yield Finding("uncompared", "note", (label,), message)


def _said(answers: dict[str, int | None] | dict[str, str | None]) -> str:
    """`32000 (base, a), 32008 (b)`: each answer once, with who gave it."""
    who: dict[object, list[str]] = {}
    for label, answer in answers.items():
        who.setdefault("no" if answer is None else answer, []).append(label)
    return ", ".join(f"{answer} ({', '.join(labels)})" for answer, labels in who.items())
