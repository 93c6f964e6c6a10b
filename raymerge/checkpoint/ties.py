"""Tied heads: a model whose output head is its input embedding, stored once.

Whether two sources agree on this is not visible in their tensors alone. Files hold the head or not,
a config says tied, untied or nothing, and each pairing means something else:

    config says   head in the files      head absent
    tied          a copy of the          tied
                  embedding, if honest
    untied        untied                 broken: loaders fill it with noise
    nothing       untied                 tied
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from raymerge.errors import PlanError

# Last components, as the model families name them.
_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "output_layer.weight",
    "proj_out.weight",  # Whisper
    "decoder.weight",  # BERT, RoBERTa and ModernBERT
    "vocab_projector.weight",  # DistilBERT
    "generator_lm_head.weight",  # ELECTRA
    "pred_layer.proj.weight",  # XLM
    "lm_loss.weight",  # XLNet
    "head.weight",  # RWKV
)
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "shared.weight",
)
# Mamba's and CLIP's. A codebook may be called so too, beside an embedding of one of those names.
_LESS_CLEAR_EMBEDDINGS = ("embeddings.weight", "token_embedding.weight")
# Heads of layers that predict a token ahead: a row per token, and tied to nothing.
_FURTHER_HEADS = ("shared_head.head.weight",)
_BIASES = (
    *(name.removesuffix("weight") + "bias" for name in _HEADS),
    "predictions.bias",
    "final_logits_bias",
)
# Where a config of several parts keeps its language model.
_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
# Classes that compute logits; a bare model, such as an embedding model, has no head to miss.
_WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_MATRIX = 2


class Shaped(Protocol):
    """A tensor of which the shape is known."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


class Holder(Protocol):
    """A source, as far as its tie is concerned: a catalog, or a plan's view of one."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""

    @property
    def tensors(self) -> Mapping[str, Shaped]:
        """By name."""


@dataclass(frozen=True, slots=True)
class Tie:
    """Names of an output head and of the input embedding it may be tied to."""

    head: str
    embedding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TiePolicy:
    """How a merge treats the head of sources that do not agree on whether it is tied."""

    head: str
    embedding: str
    tied: bool
    """The output has no head tensor and its config says tied; otherwise it has one of its own."""
    stand_ins: tuple[str, ...]
    """Labels of sources whose embedding is read where their head is asked for."""
    must_equal: tuple[str, ...]
    """Labels of sources that hold a head though their config says tied: its bytes must be the
    embedding's, or loaders disagree about which counts."""


def find_tie(catalog: Holder) -> Tie | None:
    """The head and the embedding of a source that holds both, in one two-dimensional shape.

    Of several candidates the least nested head counts, and the embedding that shares most of its
    path.
    """
    heads = sorted(filter(is_head, _matrices(catalog, _HEADS)), key=_depth)
    embeddings = _embeddings(catalog)
    for head in heads:
        shape = catalog.tensors[head].shape
        alike = [name for name in embeddings if catalog.tensors[name].shape == shape]
        if alike:
            return Tie(head, min(alike, key=lambda name: (-_shared_path(head, name), _depth(name))))
    return None


def is_head(name: str) -> bool:
    """Whether a tensor is an output head by its name."""
    return _ends_with(name, _HEADS) and not _ends_with(name, _FURTHER_HEADS)


def is_embedding(name: str) -> bool:
    """Whether a tensor is an input embedding by its name."""
    return _ends_with(name, (*_EMBEDDINGS, *_LESS_CLEAR_EMBEDDINGS))


def find_embedding(catalog: Holder) -> str | None:
    """The input embedding: of a tie, else the least nested candidate."""
    if tie := find_tie(catalog):
        return tie.embedding
    return min(_embeddings(catalog), key=_depth, default=None)


def token_axis(name: str, shape: Sequence[int]) -> int:
    """The axis that counts tokens, of a tensor that has an entry or a row for each."""
    # BART's bias has the shape [1, tokens].
    return len(shape) - 1 if _ends_with(name, _BIASES) else 0


def vocabulary_tensors(catalog: Holder) -> tuple[str, ...]:
    """Embeddings, heads and heads' biases that have a row per token, the embedding first.

    A lone head may have more, padded by itself, and then so may its bias.
    """
    embedding = find_embedding(catalog)
    if embedding is None:
        return ()
    rows = catalog.tensors[embedding].shape[0]
    named = _matrices(catalog, (*_EMBEDDINGS, *_LESS_CLEAR_EMBEDDINGS, *_HEADS))
    found = [embedding, *(name for name in named if catalog.tensors[name].shape[0] == rows)]
    lengths = [rows]
    head = lone_head(catalog)
    if head and catalog.tensors[head].shape[0] > rows:
        lengths.append(catalog.tensors[head].shape[0])
        found.append(head)
    found += [name for name in catalog.tensors if _is_bias(name, catalog, lengths)]
    return tuple(dict.fromkeys(found))


def lone_head(catalog: Holder) -> str | None:
    """The head of a source that has none in its embedding's shape: it has more rows, or fewer.

    Only one outside the layers counts, whose rows are as long as the embedding's. Of more than
    twice as many, or less than half, it is another one: padding is a few rows.
    """
    embedding = find_embedding(catalog)
    if embedding is None or find_tie(catalog):
        return None
    rows, width = catalog.tensors[embedding].shape
    heads = (
        name
        for name in _matrices(catalog, _HEADS)
        if catalog.tensors[name].shape[1] == width and not any(map(str.isdecimal, name.split(".")))
    )
    padded = (name for name in heads if rows <= 2 * catalog.tensors[name].shape[0] <= 4 * rows)
    return min(padded, key=_depth, default=None)


def _is_bias(name: str, catalog: Holder, lengths: Sequence[int]) -> bool:
    """Whether it is a head's bias by its name, one of those lengths and in one row."""
    if not name.endswith("bias") or not _ends_with(name, _BIASES):
        return False
    shape = catalog.tensors[name].shape
    return prod(shape) in lengths and shape[-1:] == (prod(shape),)


def tied_by_config(config: Mapping[str, Any]) -> bool | None:
    """What `tie_word_embeddings` says, at the top or in the language model's part, if it does."""
    for section in config_sections(config):
        said = section.get("tie_word_embeddings")
        if isinstance(said, bool):
            return said
    return None


def config_sections(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The config and the parts of it that describe a language model, outermost first."""
    nested = [config[name] for name in _SECTIONS if isinstance(config.get(name), dict)]
    return (config, *(part for section in nested for part in config_sections(section)))


def needs_head(config: Mapping[str, Any]) -> bool:
    """Whether the config names a class that computes logits."""
    classes = config.get("architectures") or ()
    return any(isinstance(name, str) and name.endswith(_WITH_HEAD) for name in classes)


def decide_tie(catalogs: Sequence[Holder]) -> TiePolicy | None:
    """Settle the head over all sources, or None where no source has one.

    The output's head is its own as soon as one source's is; sources that tie then supply their
    embedding in its place. A source that holds neither tensor under these names has no part in it.

    Raises:
        PlanError: A source's config says untied and the head is not in its files.
    """
    tie = next(filter(None, map(find_tie, catalogs)), None)
    concerned = [c for c in catalogs if tie is None or _holds_either(c, tie)]
    for catalog in concerned:
        _refuse_lost_head(catalog, tie)
    if tie is None:
        return None
    holding = [catalog for catalog in concerned if tie.head in catalog.tensors]
    claiming = [catalog for catalog in holding if tied_by_config(catalog.config)]
    tied = len(claiming) == len(holding)
    lacking = [catalog for catalog in concerned if tie.head not in catalog.tensors]
    return TiePolicy(
        head=tie.head,
        embedding=tie.embedding,
        tied=tied,
        stand_ins=() if tied else _labels(lacking),
        must_equal=_labels(claiming),
    )


def _refuse_lost_head(catalog: Holder, tie: Tie | None) -> None:
    """Raise for a source that claims a head of its own and does not have one."""
    if tied_by_config(catalog.config) is not False:
        return
    lost = tie.head not in catalog.tensors if tie else _lacks_any_head(catalog)
    if lost:
        head = tie.head if tie else _HEADS[0]
        raise PlanError(
            f"{catalog.label}: config.json says tie_word_embeddings is false, but {head} is not in "
            "its files; loaders would fill it with noise. If the head is tied, set "
            "tie_word_embeddings to true there, else fetch the missing tensor.",
            source=catalog.label,
            tensor=head,
        )


def _lacks_any_head(catalog: Holder) -> bool:
    return (
        needs_head(catalog.config)
        and find_embedding(catalog) is not None
        and not any(map(is_head, catalog.tensors))
    )


def _holds_either(catalog: Holder, tie: Tie) -> bool:
    return tie.head in catalog.tensors or tie.embedding in catalog.tensors


def _matrices(catalog: Holder, endings: tuple[str, ...]) -> list[str]:
    # Most of 90,000 names end otherwise: that is found out without a call.
    likely = [name for name in catalog.tensors if name.endswith(endings)]
    return [
        name
        for name in likely
        if _ends_with(name, endings) and len(catalog.tensors[name].shape) == _MATRIX
    ]


def _embeddings(catalog: Holder) -> list[str]:
    """Input embeddings; those whose name is less clear only where no other is there."""
    return _matrices(catalog, _EMBEDDINGS) or _matrices(catalog, _LESS_CLEAR_EMBEDDINGS)


def _ends_with(name: str, endings: tuple[str, ...]) -> bool:
    """Whether whole components of the name end it: `x.output.weight`, not `x.my_output.weight`."""
    return name.endswith(endings) and ("." + name).endswith(tuple("." + end for end in endings))


def _depth(name: str) -> tuple[int, str]:
    return name.count("."), name


def _shared_path(one: str, other: str) -> int:
    """Leading components two names have in common."""
    shared = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _labels(catalogs: Iterable[Holder]) -> tuple[str, ...]:
    return tuple(catalog.label for catalog in catalogs)
