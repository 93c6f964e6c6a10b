"""What a recipe says about the output's vocabulary: `tokenizer_source`, or `tokenizer` at length.

tokenizer:
  source: union                     # or base, or a model, also one that is not merged
  tokens:
    "<|im_start|>": {source: chat, force: true}
    "<|pad|>": {source: {kind: zero}}
    "<|eot|>": {source: {kind: model_token, model: chat, token: "</s>"}}
  pad_to_multiple_of: 64
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Literal

from raymerge.errors import RecipeError
from raymerge.recipe.dialect import IDLE_SOURCE_KEYS
from raymerge.recipe.document import Fields, Node, Place, Scalar
from raymerge.recipe.model import SourceRef
from raymerge.recipe.sources import LOCATION_KEYS, one_spelling, read_location
from raymerge.recipe.wording import did_you_mean, listed

UNION, BASE = "union", "base"
TOKENIZER_KEYS = ("source", "tokens", "pad_to_multiple_of")
_TOKEN_KEYS = ("source", "force")
_KINDS = ("zero", "model_token")
_ZERO_KEYS = ("kind",)
_MODEL_TOKEN_KEYS = ("kind", "model", "token", "token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """What a recipe says about one token of the output."""

    place: Place
    token: str
    kind: Literal["default", "zero", "row"]
    """Where a source without the token takes its row: from whoever has it, from nowhere, or from
    the row named here."""
    source: str | None = None
    """Label of the source whose row it is."""
    source_token: str | int | None = None
    """The token or id of that row; None is the token itself."""
    force: bool = False
    """Every source takes that row, those that have the token as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerPolicy:
    """Which vocabulary the output gets."""

    place: Place
    union: bool
    """Whether the tokens of all sources are added to those of the donor."""
    donor: str
    """Label of the source whose tokenizer it is, or begins as."""
    outside: SourceRef | None = None
    """That source, where it is not merged."""
    rules: tuple[TokenRule, ...] = ()
    pad_to_multiple_of: int | None = None

    @property
    def shown(self) -> str:
        """The policy in a few words."""
        return f"union, beginning with {self.donor}" if self.union else f"that of {self.donor}"


def read_tokenizer_policy(
    top: Fields, sources: Sequence[SourceRef], donor: SourceRef
) -> TokenizerPolicy | None:
    """Read `tokenizer_source` or `tokenizer`; None where the recipe has neither.

    Args:
        top: The recipe.
        sources: Every source, in recipe order.
        donor: Who gives config and, unless the recipe says otherwise, the tokenizer.

    Raises:
        RecipeError: Both keys, an unknown key or model, a value that is not allowed.
    """
    short, long = top.get("tokenizer_source"), top.get("tokenizer")
    if short is not None and long is not None:
        raise top.place_of("tokenizer").error(
            "tokenizer: given beside tokenizer_source, which is its short form; write one of them"
        )
    if short is not None:
        place = top.place_of("tokenizer_source")
        union, whose = _read_source("tokenizer_source", short, sources, donor)
        return TokenizerPolicy(
            place=place, union=union, donor=whose.label, outside=_outside(whose, sources)
        )
    if long is None:
        return None
    if not isinstance(long, Fields):
        raise long.place.error(
            f"tokenizer is {long.shown}; allowed: a mapping of {listed(TOKENIZER_KEYS)}. The short "
            "form is tokenizer_source: union"
        )
    long.check_keys("tokenizer", TOKENIZER_KEYS)
    source = long.get("source")
    union, whose = (
        (True, donor) if source is None else _read_source("source", source, sources, donor)
    )
    return TokenizerPolicy(
        place=top.place_of("tokenizer"),
        union=union,
        donor=whose.label,
        outside=_outside(whose, sources),
        rules=tuple(_read_rules(long, sources)),
        pad_to_multiple_of=_read_multiple(long),
    )


def _read_source(
    key: str, node: Node, sources: Sequence[SourceRef], donor: SourceRef
) -> tuple[bool, SourceRef]:
    """Whether it is the union, and the source to begin with, which may be one of its own."""
    if isinstance(node, Scalar) and node.value in {UNION, BASE}:
        return node.value == UNION, donor
    _check_mention(key, node)
    if found := _named(key, node, sources):
        return False, found
    (location, revision), _ = read_location(key, node)  # an adapter has no tokenizer of its own
    # A word without a slash is a label, or one that is misspelt.
    if "/" not in location and not Path(location).is_dir():
        raise _no_model(location, node.place, key, sources, (UNION, BASE), "a path or repository")
    name = os.path.normpath(location).rpartition("/")[2] or location
    taken = {source.label for source in sources}
    numbers = (f" {number}" for number in count(2))
    ends = chain([""], numbers)
    label = next(one for end in ends if (one := f"{name} tokenizer{end}") not in taken)
    return False, SourceRef(label=label, location=location, revision=revision, line=node.place.line)


def _outside(whose: SourceRef, sources: Sequence[SourceRef]) -> SourceRef | None:
    return None if whose in sources else whose


def _find(key: str, node: Node, sources: Sequence[SourceRef]) -> str:
    """The label of the model that `node` names, by label or as the recipe lists it."""
    _check_mention(key, node)
    if found := _named(key, node, sources):
        return found.label
    (location, _), _ = read_location(key, node)
    raise _no_model(location, node.place, key, sources)


def _check_mention(key: str, node: Node) -> None:
    if isinstance(node, Fields):
        node.check_keys(key, LOCATION_KEYS, IDLE_SOURCE_KEYS)
    else:
        node.as_text(key)


def _named(key: str, node: Node, sources: Sequence[SourceRef]) -> SourceRef | None:
    """The source of that label, or at that place: with that adapter if there is one."""
    label = node.as_text(key) if isinstance(node, Scalar) else None
    if found := next((source for source in sources if source.label == label), None):
        return found
    (location, revision), adapter = read_location(key, node)
    wanted = one_spelling(location), revision
    there = [one for one in sources if (one_spelling(one.location), one.revision) == wanted]
    adapted = (
        one
        for one in there
        if adapter == (one.adapter and (one.adapter.location, one.adapter.revision))
    )
    return next(adapted, there[0] if there else None)


def _no_model(
    text: str,
    place: Place,
    key: str,
    sources: Sequence[SourceRef],
    words: Sequence[str] = (),
    *others: str,
) -> RecipeError:
    labels = [source.label for source in sources]
    hint = did_you_mean(text, [*words, *labels])
    known = ", ".join(dict.fromkeys([*words, *labels, *others]))
    return place.error(
        f"{key}: {text!r} is not one of the models that are merged; allowed: {known}.{hint}"
    )


def _read_rules(tokenizer: Fields, sources: Sequence[SourceRef]) -> list[TokenRule]:
    tokens = tokenizer.get("tokens")
    if tokens is None:
        return []
    if not isinstance(tokens, Fields):
        raise tokens.place.error(
            f"tokens is {tokens.shown}; allowed: a mapping from tokens to where their rows come "
            "from, such as {'<|pad|>': {source: {kind: zero}}}"
        )
    return [_read_rule(token, field.node, sources) for token, field in tokens.fields.items()]


def _read_rule(token: str, node: Node, sources: Sequence[SourceRef]) -> TokenRule:
    if not token:
        raise node.place.error("tokens: an empty token; write the text of the token")
    if not isinstance(node, Fields):
        raise node.place.error(
            f"tokens: {token!r} is {node.shown}; allowed: a mapping of {listed(_TOKEN_KEYS)}"
        )
    node.check_keys(f"the token {token!r}", _TOKEN_KEYS)
    force = _read_force(node)
    source = node.get("source")
    if source is None:
        return TokenRule(place=node.place, token=token, kind="default", force=force)
    if not isinstance(source, Fields) or _is_mention(source):
        label = _find("source", source, sources)
        return TokenRule(place=node.place, token=token, kind="row", source=label, force=force)
    return _read_kind(token, source, sources, force=force)


def _is_mention(source: Fields) -> bool:
    """Whether a mapping says where a model is, and not which row of one."""
    return not source.fields.keys() & {"kind", "token", "token_id"} and bool(
        source.fields.keys() & set(LOCATION_KEYS)
    )


def _read_force(rule: Fields) -> bool:
    node = rule.get("force")
    if node is None:
        return False
    if isinstance(node, Scalar) and isinstance(node.value, bool):
        return node.value
    raise node.place.error(f"force is {node.shown}; allowed: true or false")


def _read_kind(
    token: str, source: Fields, sources: Sequence[SourceRef], *, force: bool
) -> TokenRule:
    kind = source.get("kind")
    if kind is None:
        raise source.place.error(f"kind: missing; allowed: {listed(_KINDS)}")
    name = kind.as_text("kind")
    if name == "zero":
        source.check_keys("a source of kind zero", _ZERO_KEYS)
        return TokenRule(place=source.place, token=token, kind="zero", force=force)
    if name != "model_token":
        raise kind.place.error(
            f"kind is {name!r}; allowed: {listed(_KINDS)}.{did_you_mean(name, _KINDS)}"
        )
    source.check_keys("a source of kind model_token", _MODEL_TOKEN_KEYS)
    model = source.get("model")
    if model is None:
        raise source.place.error("model: missing; say whose token it is")
    return TokenRule(
        place=source.place,
        token=token,
        kind="row",
        source=_find("model", model, sources),
        source_token=_read_source_token(source),
        force=force,
    )


def _read_source_token(source: Fields) -> str | int:
    token, number = source.get("token"), source.get("token_id")
    if (token is None) == (number is None):
        raise source.place.error("token, token_id: say which token, with exactly one of them")
    if token is not None:
        return token.as_text("token")
    return _read_whole("token_id", number, 0)


def _read_multiple(tokenizer: Fields) -> int | None:
    node = tokenizer.get("pad_to_multiple_of")
    return None if node is None else _read_whole("pad_to_multiple_of", node, 1)


def _read_whole(key: str, node: Node | None, least: int) -> int:
    assert node is not None
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise node.place.error(f"{key} is {node.shown}; allowed: a whole number from {least} on")
