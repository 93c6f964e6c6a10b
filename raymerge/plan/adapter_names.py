"""Modules that a checkpoint has under another prefix than the model has while it runs.

Of models that see or hear, transformers stores the language model under the names of the code that
first wrote them, and its adapters are named as the code of today runs them:

    model.language_model.layers.0.x    in the adapter
    model.layers.0.x                   in a Qwen2.5-VL
    language_model.model.layers.0.x    in a Llava, a Gemma 3

So a prefix may be another one that says the same but for such words. Any other prefix is another
model's.
"""

from __future__ import annotations

from collections.abc import Iterable

from raymerge.recipe.resolve import layer_of

_WRAPPING = frozenset({"model", "language_model"})
"""Components that say no more than that here is the language model, or the whole."""


def under_other_prefixes(names: Iterable[str], tensors: Iterable[str]) -> dict[str, str]:
    """The model's names of an adapter's tensors, where each prefix has one other to stand for.

    Args:
        names: Of parameters, as the adapter has them.
        tensors: Names in the model.

    Returns:
        By the adapter's names. Of names with the same prefix all are there, or none.
    """
    present = frozenset(tensors)
    by_prefix: dict[str, list[str]] = {}
    for name in names:
        prefix = prefix_of(name)
        by_prefix.setdefault(prefix, []).append(name.removeprefix(prefix))
    found: dict[str, str] = {}
    for prefix, rests in by_prefix.items():
        others = _others(prefix, rests, present)
        if len(others) == 1:
            found |= {prefix + rest: others[0] + rest for rest in rests}
    return found


def prefix_of(name: str) -> str:
    """What stands before the stack of layers in a name, or before the module; with its dot."""
    layer = layer_of(name)
    whole = layer[0] if layer else name.rpartition(".")[0]
    before, dot, _ = whole.rpartition(".")
    return before + dot


def _others(prefix: str, rests: list[str], present: frozenset[str]) -> list[str]:
    """The prefixes that say the same, under which the model has all that the adapter has."""
    first = rests[0]
    candidates = [
        other
        for name in present
        if name.endswith(first)
        and prefix_of(name) == (other := name.removesuffix(first))
        and _told(other) == _told(prefix)
    ]
    return [other for other in candidates if all(other + rest in present for rest in rests)]


def _told(prefix: str) -> list[str]:
    return [part for part in prefix.split(".") if part not in _WRAPPING]
