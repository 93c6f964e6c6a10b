"""A plan for people: `raymerge plan`, and `--graph TENSOR` for one tensor of it.

Facts in columns, the same text for the same plan. `document` has the same facts for programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import SURVEY_SWEEPS, Plan
from raymerge.plan.graph import CopyStep, DeltaStep, PlannedSource, Read, SpanStep, Step, TensorNode
from raymerge.plan.steps import KEEP
from raymerge.recipe.wording import did_you_mean
from raymerge.units import format_bytes

# A gradient gives every layer a step of its own: beyond these, knobs are shown as ranges.
_MAX_STEPS = 6
_MAX_NAMES = 3
_PASSES = {
    "gram": "inner products, which give the coefficients",
    "span": "sum of the inputs times their coefficients, cast",
    "histogram": "magnitudes of each task vector, which give its threshold",
    "norms": "L1 norm of each task vector, whole and kept",
    "delta": "select, weight, elect, fuse, add to the base, cast",
    "copy": "bytes as they are",
}


def explain(plan: Plan) -> str:
    """What a merge will read, hold and write, in some twenty lines."""
    sections: dict[str, Iterable[str]] = {
        "recipe": [plan.recipe.path],
        "method": [_method(plan)],
        "sources": _sources(plan),
        "tensors": _tensors(plan),
        "passes": _passes(plan),
        "reads": [format_bytes(plan.bytes_read)],
        "writes": [format_bytes(plan.bytes_written)],
        "shards": [_shards(plan)],
        "units": [_units(plan)],
        "peak": [_peak(plan)],
        "device": [f"{format_bytes(plan.memory.projected_device_bytes)} where it is CUDA"],
        "tie": _tie(plan),
        "notes": plan.notes,
        "digest": [plan.digest],
    }
    width = max(map(len, sections)) + 2
    lines = []
    for title, texts in sections.items():
        for first, text in enumerate(texts):
            lines.append(f"{'' if first else title:<{width}}{text}")
    return "\n".join(lines)


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
    branches = [
        _Branch("reads", _columns(_input_rows(plan, node))),
        _Branch(_step_title(node.step), _pass_lines(plan, node)),
        _Branch("writes", [address]),
    ]
    if node.twins:
        twins = (f"{plan.sources[a.source].label}: {a.entry.name}" for a, _ in node.twins)
        branches.insert(1, _Branch("compares, byte for byte, with", list(twins)))
    return "\n".join([name, *_tree(branches)])


def distinct_steps(plan: Plan) -> dict[int, tuple[Step, int]]:
    """Every step and its number of tensors, by the step's identity, in the order of bytes."""
    counts = Counter(id(node.step) for node in plan.nodes)
    steps = {id(node.step): node.step for node in plan.nodes}
    return {key: (step, counts[key]) for key, step in steps.items()}


@dataclass(frozen=True, slots=True)
class _Branch:
    title: str
    leaves: list[str]


def _tree(branches: Sequence[_Branch]) -> Iterator[str]:
    for number, branch in enumerate(branches, start=1):
        last = number == len(branches)
        yield f"{'`-' if last else '|-'} {branch.title}"
        for position, leaf in enumerate(branch.leaves, start=1):
            ends = position == len(branch.leaves)
            yield f"{'  ' if last else '| '} {'`-' if ends else '|-'} {leaf}"


def _method(plan: Plan) -> str:
    method = plan.recipe.method
    number = len(plan.recipe.sources)
    noun = f"{number} source{'s' if number > 1 else ''}"
    if plan.recipe.base is not None and plan.recipe.base not in plan.recipe.sources:
        noun += " and a base"
    inputs = {read.entry.dtype for node in plan.nodes for read in node.inputs}
    outputs = {node.slot.dtype for node in plan.nodes}
    dtypes = f"{_dtype_names(inputs)} -> {_dtype_names(outputs)}"
    return f"{method.name} ({method.paper}), {noun}, {dtypes}, seed {plan.recipe.seed}"


def _dtype_names(dtypes: Iterable[DType]) -> str:
    return ", ".join(sorted(dtype.torch_name for dtype in dtypes))


def _sources(plan: Plan) -> list[str]:
    return _columns(
        [source.label, format_bytes(source.tensor_bytes), _role(plan, source), _where(source)]
        for source in plan.sources
    )


def _role(plan: Plan, source: PlannedSource) -> str:
    base = plan.recipe.base
    roles = ["base"] if base is not None and source.label == base.label else []
    return ", ".join([*roles, "donor"] if source.label == plan.donor.label else roles)


def _where(source: PlannedSource) -> str:
    return f"{source.location}@{source.revision}" if source.revision else source.location


def _tensors(plan: Plan) -> Iterator[str]:
    kept = sum(node.step == KEEP for node in plan.nodes)
    copied = sum(isinstance(node.step, CopyStep) for node in plan.nodes) - kept
    merged = len(plan.nodes) - kept - copied
    yield (
        f"{len(plan.nodes)}, {plan.parameters:,} parameters: {merged} merged, {copied} copied, "
        f"{kept} kept, {len(plan.dropped)} dropped"
    )
    yield from _columns(_step_rows(plan))
    if plan.dropped:
        yield f"dropped: {_listed(plan.dropped)}"


def _step_rows(plan: Plan) -> list[list[str]]:
    """Tensors by what is done to them; many steps of one method are a row with ranges."""
    found = sorted(distinct_steps(plan).values(), key=lambda pair: -pair[1])
    groups: dict[object, list[tuple[Step, int]]] = {}
    for position, (step, count) in enumerate(found):
        alike = (_step_title(step), step.passes) if len(found) > _MAX_STEPS else position
        groups.setdefault(alike, []).append((step, count))
    return [
        [
            str(sum(count for _, count in group)),
            _step_title(group[0][0]),
            " ".join(group[0][0].passes),
            _ranges([step for step, _ in group]),
        ]
        for group in groups.values()
    ]


def knob_ranges(steps: Sequence[Step]) -> dict[str, str | tuple[str, ...]]:
    """Each knob over several steps of one method: `0.5`, or `0.1..0.9` where it differs.

    A per-source knob is a tuple, one text per source.
    """
    knobs = [step.knobs for step in steps if not isinstance(step, CopyStep)]
    shown: dict[str, str | tuple[str, ...]] = {}
    for name in knobs[0] if knobs else ():
        values = [each[name] for each in knobs]
        columns = zip(*(v if isinstance(v, tuple) else (v,) for v in values), strict=True)
        ranges = tuple(map(_range, columns))
        shown[name] = ranges if isinstance(values[0], tuple) else ranges[0]
    return shown


def _ranges(steps: Sequence[Step]) -> str:
    """`density 0.1..0.9/0.5, lambda 1`."""
    shown = knob_ranges(steps)
    return ", ".join(
        f"{name} {value if isinstance(value, str) else _joined(value)}"
        for name, value in shown.items()
    )


def _range(values: Sequence[KnobValue]) -> str:
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return format_value(distinct[0])
    if any(isinstance(value, bool | str) for value in distinct):
        return "|".join(map(format_value, distinct))
    return f"{format_value(min(distinct))}..{format_value(max(distinct))}"


def _passes(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    once = len(plan.nodes) - memory.held_tensors - memory.reread_tensors
    again = f" ({format_bytes(memory.reread_bytes)} more)" if memory.reread_bytes else ""
    yield (
        f"{once} tensors once, {memory.held_tensors} several times from memory, "
        f"{memory.reread_tensors} several times from their files{again}"
    )
    if plan.surveyed:
        yield f"before the merge a survey of the whole model, {SURVEY_SWEEPS} sweeps"


def _shards(plan: Plan) -> str:
    largest = format_bytes(max(shard.nbytes for shard in plan.shards))
    first, last = plan.shards[0].name, plan.shards[-1].name
    names = first if first == last else f"{first} to {last}"
    return f"{len(plan.shards)}, the largest {largest}: {names}"


def _units(plan: Plan) -> str:
    return f"{len(plan.units)}, the largest {format_bytes(max(u.nbytes for u in plan.units))}"


def _peak(plan: Plan) -> str:
    memory = plan.memory
    threads = f"{memory.threads} thread{'s' if memory.threads > 1 else ''}"
    return (
        f"{format_bytes(memory.projected_host_bytes)} of {format_bytes(memory.budget_bytes)}, "
        f"{threads}, tiles of {memory.budget.tile_elements:,} elements"
    )


def _tie(plan: Plan) -> Iterator[str]:
    tie = plan.tie
    if tie is None:
        yield "no source has an output head beside its embedding"
        return
    if tie.head in plan.dropped:
        yield f"{tie.head} is not written: the recipe drops it"
        return
    if tie.tied:
        yield f"tied: {tie.head} is {tie.embedding} and is not written"
    else:
        yield f"untied: {tie.head} is a tensor of its own"
    if tie.stand_ins:
        yield f"{tie.embedding} is read in its place from {', '.join(tie.stand_ins)}"
    if tie.must_equal:
        yield f"has to equal {tie.embedding} in {', '.join(tie.must_equal)}, whose config says tied"


def _why_absent(plan: Plan, name: str) -> str:
    if name in plan.dropped:
        return f"{name} is not in the output: the recipe drops it"
    if plan.tie is not None and plan.tie.tied and name == plan.tie.head:
        return f"{name} is not in the output: it is tied to {plan.tie.embedding}"
    hint = did_you_mean(name, (node.slot.name for node in plan.nodes))
    return f"the output has no tensor {name!r}, {len(plan.nodes)} others.{hint}"


def _input_rows(plan: Plan, node: TensorNode) -> Iterator[list[str]]:
    for position, read in enumerate(node.inputs):
        entry = read.entry
        yield [
            plan.sources[read.source].label,
            _stored_name(read, node),
            entry.file,
            _span(entry.start, entry.stop),
            _typed(entry.dtype, entry.shape),
            _own_knobs(node, position),
        ]


def _stored_name(read: Read, node: TensorNode) -> str:
    """The tensor's name in its source, where it is another: an embedding that is the head, too."""
    return "" if read.entry.name == node.slot.name else read.entry.name


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


def _step_title(step: Step) -> str:
    return f"copied: {step.reason}" if isinstance(step, CopyStep) else step.method


def _pass_lines(plan: Plan, node: TensorNode) -> list[str]:
    step = node.step
    lines = []
    if isinstance(step, DeltaStep) and step.surveyed:
        lines.append(f"survey     the model's thresholds, {SURVEY_SWEEPS} sweeps before the merge")
    lines.extend(f"{name:<9}  {_PASSES[name]}" for name in step.passes)
    if shared := _shared_knobs(step):
        lines[-1] += f" ({shared})"
    if len(step.passes) > 1:
        held = plan.memory.budget.holds(node)
        lines.append("inputs stay in memory" if held else "inputs are read again for every pass")
    if isinstance(step, CopyStep) and len(node.inputs) > 1:
        lines.append("inputs have to hold the same bytes")
    return lines


def _shared_knobs(step: Step) -> str:
    knobs = {} if isinstance(step, CopyStep) else step.knobs
    return ", ".join(
        f"{name} {format_value(value)}"
        for name, value in knobs.items()
        if not isinstance(value, tuple)
    )


def _joined(values: Sequence[str]) -> str:
    """One value per source as `0.5/0.3`, and as `0.5` where all are equal."""
    return values[0] if len(set(values)) == 1 else "/".join(values)


def format_value(value: KnobValue) -> str:
    """A knob's value as a recipe would write it, to six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.6g}"


def _typed(dtype: DType, shape: tuple[int, ...]) -> str:
    return f"{dtype.torch_name} {list(shape)}"


def _span(start: int, stop: int) -> str:
    return f"bytes {start}-{stop}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows whose cells line up; a column that is empty in every row takes no room."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True) if width
        ).rstrip()
        for row in table
    ]
