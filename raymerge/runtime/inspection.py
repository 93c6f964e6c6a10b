"""The nouns of an inspection, and the sums from which its figures come.

The fields are the keys of `raymerge inspect --json`. A figure is None where it has no meaning: a
cosine with a delta of zeros, or anything about deltas where no base was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from raymerge.kernels.compare import BOTH, LARGE, OPPOSITE, UNCHANGED, pairs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What the headers and the small files say of a source."""

    label: str
    location: str
    is_base: bool
    tensors: int
    parameters: int
    dtype: str | None
    """Element type of most parameters."""
    quantisation: str | None
    """The scheme and where it was seen."""
    widened: bool
    """Whether its codes are compared as the weights they stand for, as they are merged."""
    vocabulary_rows: int | None
    """Rows of the input embedding."""
    vocab_size: int | None
    """What config.json says."""
    chat_template: str | None
    """First 16 hex digits of the template's sha256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFigures:
    """A source's delta in a group of tensors; without a base, its weights."""

    label: str
    tensors: int
    """Compared, as are all the following."""
    parameters: int
    norm: float
    """Of the delta; of the weights without a base."""
    base_norm: float | None
    norm_ratio: float | None
    """||delta|| / ||base||."""
    max_delta: float | None
    large_share: float | None
    """Share of entries whose delta is above 0.03 in magnitude."""
    unchanged_share: float | None
    """Share of entries whose delta is exactly 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFigures:
    """Two sources' deltas in a group of tensors; without a base, their weights."""

    sources: tuple[str, str]
    cosine: float | None
    distance: float | None
    """||a - b|| over the mean of ||a|| and ||b||, of weights; None with a base."""
    sign_conflict_share: float | None
    """Share of entries where the deltas have opposite signs, neither being 0."""
    both_changed_share: float | None
    """Share of entries where neither delta is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """A layer, or what lies outside the layers."""

    name: str
    """`model.layers.3`; or `embeddings`, `head`, `other`, `total`."""
    stack: str | None
    """`model.layers`; None outside any stack."""
    layer: int | None
    tensors: int
    """Tensors that were compared for one source at least."""
    parameters: int
    sources: tuple[SourceFigures, ...]
    pairs: tuple[PairFigures, ...]


@dataclass(frozen=True, slots=True)
class Uncompared:
    """A tensor of a source that was left out of every figure."""

    source: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What the figures mean for a merge."""

    kind: str
    """`wrong_base`, `shared_offset`, `same_weights`, `trained_apart`, `large_deltas`,
    `vocabulary`, `tokenizer`, `chat_template`, `quantised`, `not_finite`, `uncompared`."""
    severity: str
    """`warning` or `note`."""
    sources: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `raymerge inspect` found."""

    base: str | None
    """Label of the base."""
    sources: tuple[SourceFacts, ...]
    """The base first, if there is one."""
    total: GroupFigures
    groups: tuple[GroupFigures, ...]
    """Embeddings, each layer, other tensors, head; those that there are."""
    uncompared: tuple[Uncompared, ...]
    differences: tuple[str, ...]
    """A line per disagreement between configs, tokenizers and the like."""
    findings: tuple[Finding, ...]
    """Warnings first."""
    bytes_read: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge inspect --json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFigures:
    """One tensor, as counted."""

    name: str
    members: tuple[int, ...]
    """Positions of the sources compared."""
    elements: int
    gram: npt.NDArray[np.float64]
    """Inner products of their vectors."""
    base_square: float
    entries: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    largest: npt.NDArray[np.float32]


class Sums:
    """Figures of a group of tensors. The order of `add` is the order of the sums.

    Not all sources need have every tensor: what concerns one source is summed over its own tensors,
    and what concerns two over those that both have.
    """

    def __init__(self, labels: Sequence[str], *, relative: bool) -> None:
        number = len(labels)
        self._labels = labels
        self._relative = relative
        self._num_tensors = 0
        self._elements = 0
        self._tensors_of = np.zeros(number, np.int64)
        self._elements_of = np.zeros((number, number), np.int64)
        self._base_square = np.zeros(number)
        self._entries = np.zeros((number, 2), np.int64)
        self._largest = np.zeros(number, np.float32)
        self._dots = np.zeros((number, number))
        self._squares = np.zeros((number, number))
        """[i, j]: square of i over the tensors that j has too."""
        self._pairs = np.zeros((number, number, 2), np.int64)

    def add(self, found: TensorFigures) -> None:
        """Count a tensor in."""
        members = list(found.members)
        self._num_tensors += 1
        self._elements += found.elements
        self._tensors_of[members] += 1
        self._elements_of[np.ix_(members, members)] += found.elements
        self._base_square[members] += found.base_square
        self._entries[members] += found.entries
        self._largest[members] = np.maximum(self._largest[members], found.largest)
        self._dots[np.ix_(members, members)] += found.gram
        self._squares[np.ix_(members, members)] += np.diagonal(found.gram)[:, None]
        for (i, j), counts in zip(pairs_of(members), found.pairs, strict=True):
            self._pairs[i, j] += counts

    def figures(
        self, name: str, stack: str | None = None, layer: int | None = None
    ) -> GroupFigures:
        """What the group comes to."""
        return GroupFigures(
            name=name,
            stack=stack,
            layer=layer,
            tensors=self._num_tensors,
            parameters=self._elements,
            sources=tuple(self._source(i) for i in range(len(self._labels))),
            pairs=tuple(self._pair(i, j) for i, j in pairs_of(range(len(self._labels)))),
        )

    def _source(self, i: int) -> SourceFigures:
        elements = int(self._elements_of[i, i])
        norm, base_norm = sqrt(self._squares[i, i]), sqrt(self._base_square[i])
        counted = self._relative and elements > 0
        return SourceFigures(
            label=self._labels[i],
            tensors=int(self._tensors_of[i]),
            parameters=elements,
            norm=norm,
            base_norm=base_norm if self._relative else None,
            norm_ratio=norm / base_norm if self._relative and base_norm else None,
            max_delta=float(self._largest[i]) if counted else None,
            large_share=int(self._entries[i, LARGE]) / elements if counted else None,
            unchanged_share=int(self._entries[i, UNCHANGED]) / elements if counted else None,
        )

    def _pair(self, i: int, j: int) -> PairFigures:
        elements = int(self._elements_of[i, j])
        dot, one, other = self._dots[i, j], self._squares[i, j], self._squares[j, i]
        # In this form it is exactly 1 for equal vectors, and their distance exactly 0.
        product = sqrt(one * other)
        apart, mean = sqrt(max(0.0, one + other - 2 * dot)), (sqrt(one) + sqrt(other)) / 2
        counted = self._relative and elements > 0
        return PairFigures(
            sources=(self._labels[i], self._labels[j]),
            cosine=min(1.0, max(-1.0, float(dot / product))) if product else None,
            distance=apart / mean if not self._relative and mean else None,
            sign_conflict_share=int(self._pairs[i, j, OPPOSITE]) / elements if counted else None,
            both_changed_share=int(self._pairs[i, j, BOTH]) / elements if counted else None,
        )
