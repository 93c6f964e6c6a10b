"""A sweep block read from its text."""

from __future__ import annotations

from raymerge.recipe.document import Fields, read_documents
from raymerge.sweep import evaluation


def parsed(text: str) -> evaluation.Evaluating:
    """The evaluation keys of a block whose lines are indented by a space."""
    (top,) = read_documents(f"sweep:\n{text}", "sweep.yaml")
    node = top.fields["sweep"].node
    assert isinstance(node, Fields)
    return evaluation.parse(node.fields, node.place)
