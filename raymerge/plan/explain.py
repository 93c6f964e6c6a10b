"""A plan for people: `raymerge plan`. One tensor of it is `explain_tensor`'s.

Facts in columns, the same text for the same plan. `document` has the same facts for programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from raymerge.checkpoint.dtypes import DType
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import SURVEY_SWEEPS, Plan
from raymerge.plan.columns import columns, listed
from raymerge.plan.explain_layers import layer_lines
from raymerge.plan.graph import (
    STATS,
    AppliedAdapter,
    CopyStep,
    PlannedSource,
    Step,
    TensorNode,
)
from raymerge.plan.reading import result_sweeps
from raymerge.plan.steps import KEEP
from raymerge.plan.tokenizer import tokenizer_lines
from raymerge.recipe import Recipe
from raymerge.units import format_bytes

# A gradient gives every layer a step of its own: beyond these, knobs are shown as ranges.
_MAX_STEPS = 6


def explain(plan: Plan) -> str:
    """What a merge will read, hold and write, in some twenty lines."""
    sections: dict[str, Iterable[str]] = {
        "recipe": [plan.recipe.path],
        "method": [_method(plan)],
        "sources": _sources(plan),
        "stages": _stages(plan),
        "layers": layer_lines(plan),
        "tensors": _tensors(plan),
        "passes": _passes(plan),
        "reads": [format_bytes(plan.bytes_read)],
        "writes": [format_bytes(plan.bytes_written)],
        "shards": [_shards(plan)],
        "units": [_units(plan)],
        "peak": [_peak(plan)],
        "device": _device(plan),
        "tie": _tie(plan),
        **tokenizer_lines(plan.tokenizer),
        "notes": plan.notes,
        "digest": [plan.digest],
    }
    width = max(map(len, sections)) + 2
    lines = []
    for title, texts in sections.items():
        for first, text in enumerate(texts):
            lines.append(f"{'' if first else title:<{width}}{text}")
    return "\n".join(lines)


def distinct_steps(nodes: Iterable[TensorNode]) -> dict[int, tuple[Step, int]]:
    """Every step and its number of tensors, by the step's identity, in the order of the nodes."""
    steps = [node.step for node in nodes]
    counts = Counter(map(id, steps))
    steps_by_id = {id(step): step for step in steps}
    return {key: (step, counts[key]) for key, step in steps_by_id.items()}


def _method(plan: Plan) -> str:
    number = len(plan.recipe.sources)
    noun = f"{number} source{'s' if number > 1 else ''}"
    if plan.recipe.base is not None and plan.recipe.base not in plan.recipe.sources:
        noun += " and a base"
    return _merge(plan.recipe, noun, plan.nodes)


def _merge(recipe: Recipe, sources: str, nodes: Sequence[TensorNode]) -> str:
    inputs = {one.dtype for node in nodes for one in node.inputs}
    outputs = {node.slot.dtype for node in nodes}
    dtypes = f"{_dtype_names(inputs)} -> {_dtype_names(outputs)}"
    method = recipe.method
    return f"{method.name} ({method.paper}), {sources}, {dtypes}, seed {recipe.seed}"


def _stages(plan: Plan) -> Iterator[str]:
    """Each stage inside the recipe: what it merges, and its tensors by what is done to them."""
    for stage in plan.stages:
        of = f"of {named_sources(stage.recipe)}"
        yield f"{stage.name}: {_merge(stage.recipe, of, stage.nodes)}"
        yield from (f"  {row}" for row in columns(_step_rows(stage.nodes)))
        if stage.dropped:
            yield f"  dropped: {listed(stage.dropped)}"
    if plan.stages:
        yield f"written: that of {named_sources(plan.recipe)}"


def named_sources(recipe: Recipe) -> str:
    """The sources of a stage by their labels, the base behind `on`."""
    listed = ", ".join(source.label for source in recipe.sources)
    if recipe.base is None or recipe.base in recipe.sources:
        return listed
    return f"{listed} on {recipe.base.label}"


def _dtype_names(dtypes: Iterable[DType]) -> str:
    return ", ".join(sorted(dtype.torch_name for dtype in dtypes))


def _sources(plan: Plan) -> list[str]:
    return columns(
        [source.label, format_bytes(source.tensor_bytes), _role(plan, source), _where(source)]
        for source in plan.sources
    )


def _role(plan: Plan, source: PlannedSource) -> str:
    base = plan.recipe.base
    if plan.stages:
        roles = [f"in {name}" for name in plan.used_by(source)]
    else:
        roles = ["base"] if base is not None and source.label == base.label else []
    if source.adapter:
        roles.append(adapter_figures(source.adapter))
    given = ["donor"] if source.label == plan.donor.label else plan.gives(source)
    return ", ".join([*roles, *given])


def adapter_figures(adapter: AppliedAdapter) -> str:
    """`adapter of x: rank 16, scaling 2, 28 tensors`."""
    figures = [f"{adapter.adapted} tensors"]
    if adapter.adapted:
        figures = [
            f"rank {format_range(adapter.ranks)}",
            f"scaling {format_range(adapter.scalings)}",
            *figures,
        ]
    if adapter.replaced:
        figures.append(f"{adapter.replaced} replaced")
    return f"adapter of {adapter.source}: {', '.join(figures)}"


def _where(source: PlannedSource) -> str:
    # A repository's location names the commit that its revision was.
    named = source.revision and not source.location.startswith("hf://")
    return f"{source.location}@{source.revision}" if named else source.location


def _tensors(plan: Plan) -> Iterator[str]:
    kept = sum(node.step == KEEP for node in plan.nodes)
    copied = sum(isinstance(node.step, CopyStep) for node in plan.nodes) - kept
    merged = len(plan.nodes) - kept - copied
    yield (
        f"{len(plan.nodes)}, {plan.parameters:,} parameters: {merged} merged, {copied} copied, "
        f"{kept} kept, {len(plan.dropped)} dropped"
    )
    yield from columns(_step_rows(plan.nodes))
    if plan.dropped:
        yield f"dropped: {listed(plan.dropped)}"


def _step_rows(nodes: Iterable[TensorNode]) -> list[list[str]]:
    """Tensors by what is done to them; many steps of one method are a row with ranges."""
    found = sorted(distinct_steps(nodes).values(), key=lambda pair: -pair[1])
    groups: dict[object, list[tuple[Step, int]]] = {}
    for position, (step, count) in enumerate(found):
        alike = (step_title(step), step.passes) if len(found) > _MAX_STEPS else position
        groups.setdefault(alike, []).append((step, count))
    return [
        [
            str(sum(count for _, count in group)),
            step_title(group[0][0]),
            " ".join(group[0][0].passes),
            _ranges([step for step, _ in group]),
        ]
        for group in groups.values()
    ]


def knob_ranges(steps: Sequence[Step]) -> dict[str, str | tuple[str, ...]]:
    """Each knob over several steps of one method: `0.5`, or `0.1..0.9` where it differs.

    A per-source knob is a tuple, one text per source; a single one for all sources where slices
    have different numbers of them.
    """
    knobs = [step.knobs for step in steps if not isinstance(step, CopyStep)]
    shown: dict[str, str | tuple[str, ...]] = {}
    for name in knobs[0] if knobs else ():
        values = [each[name] for each in knobs]
        rows = [value if isinstance(value, tuple) else (value,) for value in values]
        alike = len(set(map(len, rows))) == 1
        per_source = zip(*rows, strict=True) if alike else [[v for row in rows for v in row]]
        ranges = tuple(map(format_range, per_source))
        shown[name] = ranges if isinstance(values[0], tuple) else ranges[0]
    return shown


def _ranges(steps: Sequence[Step]) -> str:
    """`density 0.1..0.9/0.5, lambda 1`."""
    shown = knob_ranges(steps)
    return ", ".join(
        f"{name} {value if isinstance(value, str) else joined(value)}"
        for name, value in shown.items()
        if value  # the base alone has no source to have one
    )


def format_range(values: Sequence[KnobValue]) -> str:
    """Values of a knob as `0.5`, `0.1..0.9` or, words, `tensor|model`."""
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
    if measured := [node for node in plan.nodes if node.stats]:
        own = sum(STATS in node.passes for node in measured)
        yield f"norms and cosines of {len(measured)} tensors, {own} of them by a pass of their own"
    if plan.stages:
        found = result_sweeps(plan.nodes, memory.budget)
        more = f", {found.again} again in each of up to {found.most} sweeps" if found.again else ""
        yield (
            f"results of stages are merged as they are read: {found.once} once, {found.held} once "
            f"and then held{more}"
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
    window = memory.budget.window_bytes
    ahead = f", each fetching up to {format_bytes(window)} ahead" if window else ""
    return (
        f"{format_bytes(memory.projected_host_bytes)} of {format_bytes(memory.budget_bytes)}, "
        f"{threads}{ahead}, tiles of {memory.budget.tile_elements:,} elements"
    )


def _device(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    if memory.projected_device_bytes:
        yield (
            f"{format_bytes(memory.projected_device_bytes)} of each CUDA device, fed from "
            f"{format_bytes(memory.pinned_host_bytes)} of pinned memory, "
            f"{memory.budget.depth} tiles under way"
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


def step_title(step: Step) -> str:
    """The method, or why nothing is merged."""
    return f"copied: {step.reason}" if isinstance(step, CopyStep) else step.method


def joined(values: Sequence[str]) -> str:
    """One value per source as `0.5/0.3`, and as `0.5` where all are equal."""
    return values[0] if len(set(values)) == 1 else "/".join(values)


def format_value(value: KnobValue) -> str:
    """A knob's value as a recipe would write it, to six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.6g}"
