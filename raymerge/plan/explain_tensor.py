"""One tensor of a plan for people: `raymerge plan --graph TENSOR`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.kernels.groups import Group
from raymerge.kernels.rows import rows_of
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import SURVEY_SWEEPS, Plan
from raymerge.plan.columns import columns
from raymerge.plan.explain import format_value, step_title
from raymerge.plan.graph import (
    STATS,
    CopyStep,
    DeltaStep,
    Derived,
    FreeStep,
    Input,
    SpanStep,
    Step,
    TensorNode,
)
from raymerge.plan.memory import Budget
from raymerge.plan.tiles import tile_of
from raymerge.recipe.wording import did_you_mean

_PASSES = {
    STATS: "norms and cosines for the ledger",
    "gram": "inner products, which give the coefficients",
    "span": "sum of the inputs times their coefficients, cast",
    "histogram": "magnitudes of each task vector, which give its threshold",
    "norms": "L1 norm of each task vector, whole and kept",
    "delta": "select, weight, elect, fuse, add to the base, cast",
    "copy": "bytes as they are",
}

_GROUP_PASSES = {
    "gram": "inner products within each of {}, which give its coefficients",
    "span": "sum of the inputs times the coefficients of each of {}, cast",
}
"""What these are where rows or columns have coefficients of their own."""


def explain_tensor(plan: Plan, name: str) -> str:
    """One tensor's graph: the bytes read, the passes over them, the address written.

    Raises:
        PlanError: The output has no such tensor.
    """
    node = next((node for node in plan.nodes if node.slot.name == name), None)
    if node is None:
        raise PlanError(_why_absent(plan, name), tensor=name)
    shard = next(shard.name for shard in plan.shards if node.slot in shard.slots)
    slot = node.slot
    address = f"{shard}  {_span(slot.start, slot.stop)}  {_typed(slot.dtype, slot.shape)}"
    branches = [*_work(plan, node, plan.memory.budget), _Branch("writes", _leaves([address]))]
    if node.twins:
        twins = (f"{plan.label(a)}: {a.name}" for a, _ in node.twins)
        branches.insert(1, _Branch("compares, byte for byte, with", _leaves(twins)))
    return "\n".join([name, *_tree(branches)])


@dataclass(frozen=True, slots=True)
class _Branch:
    title: str
    branches: list[_Branch]


def _leaves(titles: Iterable[str]) -> list[_Branch]:
    return [_Branch(title, []) for title in titles]


def _tree(branches: Sequence[_Branch], indent: str = "") -> Iterator[str]:
    for number, branch in enumerate(branches, start=1):
        last = number == len(branches)
        yield f"{indent}{'`-' if last else '|-'} {branch.title}"
        yield from _tree(branch.branches, indent + ("   " if last else "|  "))


def _work(plan: Plan, node: TensorNode, budget: Budget) -> list[_Branch]:
    """What a node reads and does; under a stage's result, what that stage reads and does."""
    inputs = _leaves(columns(_input_rows(plan, node)))
    for branch, one in zip(inputs, node.inputs, strict=True):
        if one.inner is not None:
            branch.branches.extend(_work(plan, one.inner, budget.inside(node, one.inner)))
    passes = _leaves(_pass_lines(node, budget))
    return [_Branch("reads", inputs), _Branch(step_title(node.step), passes)]


def _why_absent(plan: Plan, name: str) -> str:
    if name in plan.dropped:
        return f"{name} is not in the output: the recipe drops it"
    if plan.tie is not None and plan.tie.tied and name == plan.tie.head:
        return f"{name} is not in the output: it is tied to {plan.tie.embedding}"
    hint = did_you_mean(name, (node.slot.name for node in plan.nodes))
    return f"the output has no tensor {name!r}, {len(plan.nodes)} others.{hint}"


def _input_rows(plan: Plan, node: TensorNode) -> Iterator[list[str]]:
    for position, one in enumerate(node.inputs):
        yield [
            plan.label(one),
            "" if one.name == node.slot.name else one.name,
            *_where(one),
            _typed(one.dtype, one.shape),
            _own_knobs(node, position),
        ]


def _where(one: Input) -> tuple[str, str]:
    """The bytes of a stored input, or what a derived one is worked out from."""
    if one.inner is not None:
        return "stage", ""
    if isinstance(one, Derived):
        return one.how, f"{len(one.reads)} stored tensors"
    return one.file, _span(one.entry.start, one.entry.stop)


def _own_knobs(node: TensorNode, position: int) -> str:
    """What the recipe says about one input; a base that is not among the sources has nothing."""
    if isinstance(node.step, CopyStep):
        return ""
    figures: dict[str, Sequence[KnobValue]] = {
        name: value for name, value in node.step.knobs.items() if isinstance(value, tuple)
    }
    if isinstance(node.step, SpanStep) and node.step.coefficients is not None:
        figures["coefficient"] = node.step.coefficients
    owned = []
    for name, values in figures.items():
        index = position - (len(node.inputs) - len(values))
        if index >= 0:
            owned.append(f"{name} {format_value(values[index])}")
    return ", ".join(owned)


def _pass_lines(node: TensorNode, budget: Budget) -> list[str]:
    step = node.step
    lines = []
    if isinstance(step, DeltaStep) and step.surveyed:
        lines.append(f"survey     the model's thresholds, {SURVEY_SWEEPS} sweeps before the merge")
    lines.extend(f"{name:<9}  {_pass_text(node, name)}" for name in node.passes)
    if shared := _shared_knobs(step):
        lines[-1] += f" ({shared})"
    if isinstance(step, DeltaStep) and step.ranks:
        rows = rows_of(node.slot.shape)
        tile = tile_of(node, budget.tile_elements)
        lines.append(f"ranked in whole rows of {rows.length} entries, tiles of {tile:,} elements")
    if len(node.passes) > 1:
        held = budget.holds(node)
        lines.append("inputs stay in memory" if held else "inputs are read again for every pass")
    if isinstance(step, CopyStep) and len(node.inputs) > 1:
        lines.append("inputs have to hold the same bytes")
    return lines


def _pass_text(node: TensorNode, name: str) -> str:
    if isinstance(node.step, FreeStep) and name != STATS:
        return node.step.rule.passes[name]
    groups = node.groups
    if groups.kind is Group.TENSOR or name not in _GROUP_PASSES:
        return _PASSES[name]
    return _GROUP_PASSES[name].format(f"{groups.count} {groups.kind}s of {groups.size}")


def _shared_knobs(step: Step) -> str:
    knobs = {} if isinstance(step, CopyStep) else step.knobs
    return ", ".join(
        f"{name} {format_value(value)}"
        for name, value in knobs.items()
        if not isinstance(value, tuple)
    )


def _typed(dtype: DType, shape: tuple[int, ...]) -> str:
    return f"{dtype.torch_name} {list(shape)}"


def _span(start: int, stop: int) -> str:
    return f"bytes {start}-{stop}"
