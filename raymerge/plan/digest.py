"""The name of a plan: equal for equal merges, whatever machine, device or destination."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raymerge.checkpoint.folder import Pin
from raymerge.plan.graph import CopyStep, DeltaStep, FreeStep, Step
from raymerge.plan.stages import terms

if TYPE_CHECKING:
    from raymerge.plan.build import Plan

CONTRACT = "1"
"""Version of the numeric contract. Part of every digest: a change of bytes is another merge."""


def digest(plan: Plan) -> str:
    """The plan's name, 16 hex digits."""
    hashed = hashlib.sha256()
    recipe = plan.recipe
    hashed.update(repr((CONTRACT, recipe.seed, recipe.nan, recipe.method.name)).encode())
    # Its config and tokenizer go beside the tensors.
    hashed.update(repr((plan.donor.label, _identities(plan.donor.side_pins))).encode())
    if plan.tokenizer is not None:
        side = next(s.side_pins for s in plan.sources if s.label == plan.tokenizer.donor)
        hashed.update(repr((plan.tokenizer.identity, _identities(side))).encode())
    for source in plan.sources:
        named = source.label, source.revision, _identities(source.pins)
        hashed.update(repr(named).encode())
    for stage in plan.stages:
        own = stage.recipe.method.name, terms(stage.recipe, recipe, plan.sources)
        hashed.update(repr(own).encode())
    if plan.stages:
        hashed.update(repr(terms(recipe, recipe, plan.sources).labels).encode())
    texts: dict[int, str] = {}
    for shard in plan.shards:
        hashed.update(repr((shard.name, len(shard.header), shard.nbytes)).encode())
    for node in plan.all_nodes:
        text = texts.get(id(node.step))
        if text is None:
            text = texts[id(node.step)] = _canonical(node.step)
        slot = node.slot
        reads = [one.identity for one in node.inputs]
        hashed.update(
            f"{slot.name}\0{slot.dtype}\0{slot.shape}\0{slot.start}\0{text}\0{reads}\n".encode()
        )
    return hashed.hexdigest()[:16]


def _identities(pins: Mapping[str, Pin]) -> list[tuple[str, int, str]]:
    return [(name, pin.size_bytes, pin.tag) for name, pin in sorted(pins.items())]


def _canonical(step: Step) -> str:
    if isinstance(step, CopyStep):
        return "copy"
    if isinstance(step, DeltaStep):
        return repr(step.rule)
    if isinstance(step, FreeStep):
        return repr((step.method, step.rule))
    return repr((step.method, step.relative, step.coefficients, _sorted(step.knobs)))


def _sorted(knobs: Mapping[str, object]) -> list[tuple[str, object]]:
    return sorted(knobs.items())
