"""Tensors that a vocabulary policy would have to put in another order and does not know by name.

What they are is a guess by name and length, made only outside the layers, and only where lengths
tell something: in a model whose rows are as long as its vocabulary, every norm would look like one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from raymerge.checkpoint.ties import find_embedding, lone_head
from raymerge.errors import PlanError
from raymerge.plan.graph import Input
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.patterns import matches
from raymerge.recipe.resolve import layer_of
from raymerge.recipe.tokenizer_keys import TokenizerPolicy

_OF_TOKENS = re.compile(r"head|vocab|logits|predict|unembed|output|decoder\.(weight|bias)$|lm_")


def refuse_unknown_rows(
    recipe: Recipe, policy: TokenizerPolicy, view: View, known: Collection[str]
) -> None:
    """Raise for a tensor of a source that seems to have a row per token and is not put in order.

    Args:
        recipe: What it does not merge is none of the policy's business.
        policy: It changes rows.
        view: The source.
        known: Tensors that follow the policy.
    """
    embedding = find_embedding(view)
    if embedding is None:
        return
    rows, width = view.tensors[embedding].shape
    head = lone_head(view)
    settled = (*recipe.keep, *recipe.drop)
    for name, one in view.tensors.items():
        by_length = rows != width and rows in one.shape and _looks_like_rows(name, one)
        if not (by_length or name == head) or name in known or matches(settled, name):
            continue
        raise PlanError(
            f"{view.label}: {name} has shape {list(one.shape)} and seems to have a "
            f"row per token, as {embedding} has {rows}, but raymerge cannot tell which. "
            f"{policy.place}: the vocabulary's rows change, so it cannot be merged as it stands. "
            f"To copy the donor's write `keep: [{name}]`, to leave it out `drop: [{name}]`.",
            source=view.label,
            tensor=name,
        )


def _looks_like_rows(name: str, one: Input) -> bool:
    """Whether a tensor with an axis of that length is outside the layers and named for it."""
    if layer_of(name) is not None:
        return False
    return len(one.shape) == 1 or _OF_TOKENS.search(name.lower()) is not None
