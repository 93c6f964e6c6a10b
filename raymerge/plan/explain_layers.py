"""The stacks of layers that slices build, for `raymerge plan` and its `--json`.

Ranges are half-open, as in recipes: `[0, 8)` is layers 0 to 7.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from raymerge.plan.build import Plan
from raymerge.plan.columns import columns, listed
from raymerge.plan.parts import Placed, Stack
from raymerge.recipe import Recipe

_MAX_SHOWN = 60


def layer_lines(plan: Plan) -> Iterator[str]:
    """Which layers of which source become which layers of the output; nothing without slices."""
    for stage in plan.stages:
        yield from _stack_lines(stage.recipe, stage.stacks, f"stage {stage.name}: ")
    yield from _stack_lines(plan.recipe, plan.stacks, "")
    for edit in plan.config_edits:
        yield f"config.json: {edit.key} {_short(json.dumps(edit.value))}"


def _stack_lines(recipe: Recipe, stacks: Iterable[Stack], title: str) -> Iterator[str]:
    labels = [ref.label for ref in recipe.all_sources]
    for stack in stacks:
        slices = f"{len(stack.slices)} slice{'s' if len(stack.slices) > 1 else ''}"
        yield f"{title}{stack.name}: {len(stack.origin)} of {slices}"
        yield from columns(_rows(labels, stack))
        if unused := ", ".join(_unused(labels, stack)):
            yield f"not used: {unused}"


def stack_documents(stacks: Iterable[Stack]) -> list[dict[str, Any]]:
    """The same as JSON values; sources by their position among those of the stage."""
    return [
        {
            "stack": stack.name,
            "layers": len(stack.origin),
            "slices": [_slice(placed) for placed in stack.slices],
            "before": list(stack.before),
            "after": list(stack.after),
        }
        for stack in stacks
    ]


def _slice(placed: Placed) -> dict[str, Any]:
    return {
        "start": placed.first,
        "stop": placed.first + placed.count,
        "sources": [
            {"source": position, "start": start, "stop": start + placed.count}
            for position, start in placed.starts.items()
        ],
    }


def _rows(labels: Sequence[str], stack: Stack) -> Iterator[list[str]]:
    if stack.before:
        yield ["before", listed(stack.before), f"from {_from(labels, stack.slices[0])}"]
    for placed in stack.slices:
        taken = (
            f"{labels[position]} {_span(start, start + placed.count)}"
            for position, start in placed.starts.items()
        )
        yield [_span(placed.first, placed.first + placed.count), ", ".join(taken), ""]
    if stack.after:
        yield ["after", listed(stack.after), f"from {_from(labels, stack.slices[-1])}"]


def _from(labels: Sequence[str], placed: Placed) -> str:
    return ", ".join(labels[position] for position in placed.starts)


def _unused(labels: Sequence[str], stack: Stack) -> Iterator[str]:
    """Layers of the sources that no slice takes."""
    for position, depth in enumerate(stack.depths):
        used = {
            placed.starts[position] + number
            for placed in stack.slices
            if position in placed.starts
            for number in range(placed.count)
        }
        free = [number for number in range(depth) if number not in used]
        if used and free:
            yield f"{labels[position]} {' '.join(_spans(free))}"


def _spans(numbers: Sequence[int]) -> Iterable[str]:
    """Runs of rising numbers as ranges."""
    first = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], -1], strict=True):
        if following != number + 1:
            yield _span(first, number + 1)
            first = following


def _span(start: int, stop: int) -> str:
    return f"[{start}, {stop})"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
