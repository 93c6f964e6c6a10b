"""A tree as YAML text again: what `read_documents` reads back to an equal tree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import yaml
from yaml.dumper import BaseDumper

from raymerge.errors import RecipeError
from raymerge.recipe.document import Fields, Items, Node

_STR, _SEQ, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_MAX_NODES = 100_000
"""Aliases are written out, and a few lines of them can stand for more than memory holds."""


def render(documents: Sequence[Fields]) -> str:
    """YAML of one or more documents, without comments and aliases.

    Raises:
        RecipeError: Written out it would be too long.
    """
    writer = _Writer()
    nodes = [writer.node(document) for document in documents]
    text = yaml.serialize_all(
        nodes,
        Dumper=BaseDumper,
        width=math.inf,
        allow_unicode=True,
        explicit_start=True if len(nodes) > 1 else None,
    )
    return str(text)


class _Writer:
    """Makes PyYAML's nodes of ours, a new one for each mention."""

    def __init__(self) -> None:
        self._count = 0

    def node(self, node: Node) -> yaml.Node:
        self._count += 1
        if self._count > _MAX_NODES:
            raise RecipeError(
                f"{node.place}: the recipe has more than {_MAX_NODES} values once its aliases are "
                "written out; write a smaller one",
                file=node.place.path,
            )
        if isinstance(node, Fields):
            pairs = [(_scalar(key), self.node(field.node)) for key, field in node.fields.items()]
            return yaml.MappingNode(_MAP, pairs, flow_style=False)
        if isinstance(node, Items):
            return yaml.SequenceNode(_SEQ, [self.node(item) for item in node.items])
        return _scalar(node.text, quoted=node.quoted)


def _scalar(text: str, *, quoted: bool = False) -> yaml.ScalarNode:
    return yaml.ScalarNode(_STR, text, style='"' if quoted else None)
