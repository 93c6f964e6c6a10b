"""A plan for programs: `raymerge plan --json`.

Complete, without times or machine names, and in this order of keys:

    digest, method, recipe, seed, nan
    sources   label, location, revision, donor, tensor_bytes, files: name, bytes, tag; of an adapter
              also adapter: source (whose it is), ranks, scalings, adapted, replaced
    stages    of a recipe of several, the one that is written last: name (null without one), method,
              seed, nan, sources (label, source or stage: its index, base: true or false), tensors
              (how many), tie, stacks (as below), dropped
    steps     index, kind (copy, span, delta, free), method, reason (of a copy), knobs, coefficients
              (of a span, null where the run decides them), group (of a span: what has coefficients
              of its own), passes, surveyed, tensors (how many)
    tensors   name, dtype, shape, step (its index), inputs, shard, start, stop
    inputs    source (its index; behind the sources stand the stages), tensor (only where it has
              another name there), file, start, stop, dtype; of one worked out from stored tensors,
              instead of file, start and stop: derived (how), reads (the stored ones); of a stage's
              result, instead of all those and source: stage (its index), dtype, step, inputs
    shards    name, bytes, tensors (how many)
    units     number, shard, start, stop, read_bytes, tensors (names)
    stats     tensors (whose norms and cosines are taken), passes (how many have one for that alone)
    results   once (results of stages merged in the one sweep over them), held (merged once and kept
              for further sweeps), again (merged in every sweep), most_sweeps (over any of those)
    memory    budget_bytes, projected_host_bytes, pinned_host_bytes, projected_device_bytes,
              threads, thread_bytes, tile_elements, ring_depth, window_bytes, held_tensors,
              reread_tensors, reread_bytes
    totals    tensors, parameters, bytes_read, bytes_written
    vocabulary  policy, donor, tokens, rows, added (ids by token), removed, unknown,
              changes (of ids in configs), sources: label, tokens, rows, lacked; null without a
              policy
    chat_template  name, source (its label, null where it is no source's); null without one
    tie       head, embedding, tied, stand_ins, must_equal; null without a head
    stacks    of slices: stack (before a layer's number in a name), layers (how many), slices (start
              and stop in the output; sources: source, start, stop), before, after (tensors that the
              first and the last slice give)
    config    what slices change in config.json: key, value
    dropped, notes

Byte ranges are half-open and count from the start of their file. dtypes are safetensors' names.

What 90,000 tensors share - steps, file names, integers - is one object each here, and `json.dumps`
without `indent` writes it at C speed: an indented dump takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raymerge.checkpoint.ties import TiePolicy
from raymerge.plan.build import Plan
from raymerge.plan.explain import distinct_steps
from raymerge.plan.explain_layers import stack_documents
from raymerge.plan.graph import (
    STATS,
    CopyStep,
    DeltaStep,
    Derived,
    FreeStep,
    Input,
    PlannedSource,
    SpanStep,
    Step,
    TensorNode,
)
from raymerge.plan.merged import Merged
from raymerge.plan.reading import result_sweeps
from raymerge.plan.tokenizer import tokenizer_document
from raymerge.recipe import Recipe, SourceRef

Document = dict[str, Any]


def as_json(plan: Plan) -> Document:
    """The plan as JSON values; the module's docstring lists the keys."""
    steps = distinct_steps(plan.all_nodes)
    positions = {key: index for index, key in enumerate(steps)}
    shards = {slot.name: shard.name for shard in plan.shards for slot in shard.slots}
    return {
        "digest": plan.digest,
        "method": plan.recipe.method.name,
        "recipe": plan.recipe.path,
        "seed": plan.recipe.seed,
        "nan": plan.recipe.nan,
        "sources": [
            source_document(source, donor=source.label == plan.donor.label)
            for source in plan.sources
        ],
        "stages": _stages(plan),
        "steps": [_step(index, step, count) for index, (step, count) in enumerate(steps.values())],
        "tensors": [_tensor(node, positions, shards[node.slot.name]) for node in plan.nodes],
        "shards": [
            {"name": shard.name, "bytes": shard.nbytes, "tensors": len(shard.slots)}
            for shard in plan.shards
        ],
        "units": _units(plan),
        "stats": _stats(plan),
        "results": _results(plan),
        "memory": _memory(plan),
        "totals": {
            "tensors": len(plan.nodes),
            "parameters": plan.parameters,
            "bytes_read": plan.bytes_read,
            "bytes_written": plan.bytes_written,
        },
        **tokenizer_document(plan.tokenizer),
        "tie": _tie(plan.tie),
        "stacks": stack_documents(plan.stacks),
        "config": [{"key": edit.key, "value": edit.value} for edit in plan.config_edits],
        "dropped": list(plan.dropped),
        "notes": list(plan.notes),
    }


def source_document(source: PlannedSource, *, donor: bool) -> Document:
    """A source as pinned, its files with their identities."""
    document: Document = {
        "label": source.label,
        "location": source.location,
        "revision": source.revision,
        "donor": donor,
        "tensor_bytes": source.tensor_bytes,
        "files": [
            {"name": name, "bytes": pin.size_bytes, "tag": pin.tag}
            for name, pin in sorted(source.pins.items())
        ],
    }
    if source.adapter:
        document["adapter"] = asdict(source.adapter)
    return document


def _step(index: int, step: Step, count: int) -> Document:
    kinds = {CopyStep: "copy", SpanStep: "span", DeltaStep: "delta", FreeStep: "free"}
    document: Document = {"index": index, "kind": kinds[type(step)]}
    if isinstance(step, CopyStep):
        document |= {"method": None, "reason": step.reason, "knobs": {}}
    else:
        knobs = {k: list(v) if isinstance(v, tuple) else v for k, v in step.knobs.items()}
        document |= {"method": step.method, "knobs": knobs}
    if isinstance(step, SpanStep):
        known = step.coefficients
        document["coefficients"] = None if known is None else list(known)
        document["group"] = step.group.value
    return document | {
        "passes": list(step.passes),
        "surveyed": isinstance(step, DeltaStep) and step.surveyed,
        "tensors": count,
    }


def _tensor(node: TensorNode, steps: Mapping[int, int], shard: str) -> Document:
    slot = node.slot
    return {
        "name": slot.name,
        "dtype": slot.dtype.value,
        "shape": list(slot.shape),
        "step": steps[id(node.step)],
        "inputs": [_input(one, slot.name, steps) for one in node.inputs],
        "shard": shard,
        "start": slot.start,
        "stop": slot.stop,
    }


def _input(one: Input, name: str, steps: Mapping[int, int]) -> Document:
    document: Document = {"source": one.source}
    if isinstance(one, Merged):
        document = {"stage": one.stage}
    if one.name != name:
        document["tensor"] = one.name
    if isinstance(one, Merged):
        return document | {
            "dtype": one.dtype.value,
            "step": steps[id(one.node.step)],
            "inputs": [_input(inner, one.name, steps) for inner in one.node.inputs],
        }
    if isinstance(one, Derived):
        document["derived"] = one.how
        document["reads"] = [_input(read, one.name, steps) for read in one.reads]
    else:
        document |= {"file": one.file, "start": one.entry.start, "stop": one.entry.stop}
    document["dtype"] = one.dtype.value
    return document


def _stages(plan: Plan) -> list[Document]:
    if not plan.stages:
        return []
    inner = [
        (each.recipe, len(each.nodes), each.tie, each.stacks, each.dropped) for each in plan.stages
    ]
    written = plan.recipe, len(plan.nodes), plan.tie, plan.stacks, plan.dropped
    return [
        {
            "name": stage.name,
            "method": stage.method.name,
            "seed": stage.seed,
            "nan": stage.nan,
            "sources": [_mention(plan, stage, ref) for ref in stage.all_sources],
            "tensors": count,
            "tie": _tie(tie),
            "stacks": stack_documents(stacks),
            "dropped": list(dropped),
        }
        for stage, count, tie, stacks, dropped in (*inner, written)
    ]


def _mention(plan: Plan, stage: Recipe, ref: SourceRef) -> Document:
    document: Document = {"label": ref.label}
    if ref.location in stage.results:
        names = [each.name for each in plan.stages]
        document["stage"] = names.index(ref.location)
    else:
        known = [each.identity for each in plan.recipe.checkpoints]
        document["source"] = known.index(ref.identity)
    return document | {"base": ref == stage.base}


def _stats(plan: Plan) -> Document:
    measured = [node for node in plan.nodes if node.stats]
    return {
        "tensors": len(measured),
        "passes": sum(STATS in node.passes for node in measured),
    }


def _results(plan: Plan) -> Document:
    found = result_sweeps(plan.nodes, plan.memory.budget)
    return {
        "once": found.once,
        "held": found.held,
        "again": found.again,
        "most_sweeps": found.most,
    }


def _units(plan: Plan) -> list[Document]:
    return [
        {
            "number": unit.number,
            "shard": unit.shard,
            "start": unit.start,
            "stop": unit.stop,
            "read_bytes": unit.read_bytes,
            "tensors": [node.slot.name for node in unit.nodes],
        }
        for unit in plan.units
    ]


def _memory(plan: Plan) -> Document:
    memory = plan.memory
    return {
        "budget_bytes": memory.budget_bytes,
        "projected_host_bytes": memory.projected_host_bytes,
        "pinned_host_bytes": memory.pinned_host_bytes,
        "projected_device_bytes": memory.projected_device_bytes,
        "threads": memory.threads,
        "thread_bytes": memory.budget.thread_bytes,
        "tile_elements": memory.budget.tile_elements,
        "ring_depth": memory.budget.depth,
        "window_bytes": memory.budget.window_bytes,
        "held_tensors": memory.held_tensors,
        "reread_tensors": memory.reread_tensors,
        "reread_bytes": memory.reread_bytes,
    }


def _tie(tie: TiePolicy | None) -> Document | None:
    if tie is None:
        return None
    return {
        "head": tie.head,
        "embedding": tie.embedding,
        "tied": tie.tied,
        "stand_ins": list(tie.stand_ins),
        "must_equal": list(tie.must_equal),
    }
