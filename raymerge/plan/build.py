"""Recipe x catalogs -> plan. Pure: everything is decided here, from headers alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Literal

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType, promote
from raymerge.checkpoint.folder import Pin
from raymerge.checkpoint.layout import Shard, auto_shard_bytes, lay_out
from raymerge.checkpoint.quantised import quantisation
from raymerge.checkpoint.scaled import scaled_codes
from raymerge.checkpoint.ties import TiePolicy
from raymerge.errors import PlanError
from raymerge.plan.adapters import adapt
from raymerge.plan.dequantised import dequantised, dequantised_note
from raymerge.plan.experts import experts_note, in_one_layout
from raymerge.plan.graph import (
    AppliedAdapter,
    CopyStep,
    DeltaStep,
    FreeStep,
    Input,
    PlannedSource,
    SpanStep,
    Step,
    TensorNode,
    Unit,
)
from raymerge.plan.layer_config import Edit, layer_config
from raymerge.plan.match import Match, check_shapes, inputs_of, match, twins
from raymerge.plan.memory import Memory, project, sample_bytes
from raymerge.plan.parts import Stack
from raymerge.plan.steps import KEEP, StepMaker, output_dtype, settle
from raymerge.plan.tokenizer import PlannedTokenizer, settle_tokenizer
from raymerge.plan.units import cut
from raymerge.plan.views import View, views
from raymerge.recipe import Recipe
from raymerge.recipe.resolve import Distinct
from raymerge.tokenizer.files import TokenizerFiles

CONTRACT = "1"
"""Version of the numeric contract. Part of every digest: a change of bytes is another merge."""

SURVEY_SWEEPS = 3
"""A survey counts upper bits, lower bits, then the ties of each unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan needs to know about the machine and the destination."""

    memory_bytes: int
    """What one worker process may use."""
    threads: int
    """Units in progress at once in a worker."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What merges."""
    shard_bytes: int | None = None
    """Limit of an output shard; None chooses it from the output's size."""
    device_memory_bytes: int | None = None
    """What one CUDA device may use; None leaves it to the device."""
    whole_shards: bool = False
    """A unit is a whole shard, for destinations where a file has one writer."""
    hold: bool = True
    """Whether what is swept more than once is kept in memory where it fits, not read again."""
    tile_elements: int | None = None
    """A fixed tile instead of the chosen one, a multiple of 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A merge, decided: which bytes, through which steps, to which address, at what peak."""

    recipe: Recipe
    sources: tuple[PlannedSource, ...]
    nodes: tuple[TensorNode, ...]
    """Every output tensor, in the order of its bytes."""
    shards: tuple[Shard, ...]
    units: tuple[Unit, ...]
    memory: Memory
    tie: TiePolicy | None
    stacks: tuple[Stack, ...]
    """Layers that slices build."""
    config_edits: tuple[Edit, ...]
    """What slices change in the donor's config.json."""
    dropped: tuple[str, ...]
    tokenizer: PlannedTokenizer | None
    """What the recipe makes of vocabulary and chat template; None leaves the donor's."""
    notes: tuple[str, ...]
    """What a reader should know before running: narrowings, config differences, knobs without
    effect."""
    digest: str
    """Names the merge: recipe, pinned sources, layout and numeric contract; nothing of workers,
    devices or destination."""

    @property
    def donor(self) -> PlannedSource:
        """The source that gives config, tokenizer and the tensors that are kept."""
        return next(s for s in self.sources if s.label == self.recipe.donor.label)

    @property
    def surveyed(self) -> bool:
        """Whether thresholds are the model's, fixed before the merge."""
        return any(isinstance(node.step, DeltaStep) and node.step.surveyed for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Elements of the output."""
        return sum(prod(node.slot.shape) for node in self.nodes)

    @property
    def bytes_read(self) -> int:
        """Bytes the run reads, sweeps that do not fit in memory and samples counted again."""
        once = sum(node.input_bytes for node in self.nodes)
        compared = sum(a.read_bytes + b.read_bytes for n in self.nodes for a, b in n.twins)
        surveyed = sum(
            node.input_bytes
            for node in self.nodes
            if isinstance(node.step, DeltaStep) and node.step.surveyed
        )
        again = self.memory.reread_bytes + SURVEY_SWEEPS * surveyed
        sampled = sum(sample_bytes(node, self.memory.budget) for node in self.nodes)
        return once + compared + again + sampled

    @property
    def bytes_written(self) -> int:
        """Bytes of the output's shards."""
        return sum(shard.nbytes for shard in self.shards)


def build(
    recipe: Recipe,
    catalogs: Sequence[Catalog],
    options: PlanOptions,
    *,
    remarks: Iterable[str] = (),
    tokenizer_files: Mapping[str, TokenizerFiles] = MappingProxyType({}),
) -> Plan:
    """Plan a merge.

    Args:
        recipe: What to merge.
        catalogs: One per `recipe.all_sources` and then per `recipe.adapters`, in that order.
        options: Budgets and limits.
        remarks: Further lines for the reader, such as differences between the sources' configs.
        tokenizer_files: Those of every source, by label; one that is not in it has none.

    Raises:
        PlanError: Sources do not match each other or the recipe, are quantised, or do not fit.
        SourceError: A tokenizer that the recipe needs cannot be read.
    """
    _refuse_quantised(catalogs)
    adaptation = adapt(recipe, catalogs, dequantised(views(catalogs), catalogs))
    stored = in_one_layout(adaptation.views, recipe.donor.label)
    seen, tokenizer = settle_tokenizer(recipe, stored, tokenizer_files)
    matched = match(recipe, seen, stored=stored)
    nodes = _nodes(recipe, seen, matched)
    if not nodes:
        raise PlanError(f"{recipe.path}: nothing is left to write: `drop:` covers every tensor")
    outputs = [(name, dtype, inputs[0].shape) for name, dtype, _, inputs in nodes]
    shard_bytes = options.shard_bytes or auto_shard_bytes(
        sum(dtype.num_bytes(shape) for _, dtype, shape in outputs)
    )
    shards = lay_out(outputs, max_shard_bytes=shard_bytes)
    placed = _place(nodes, shards, twins(matched, stored), matched.tie)
    applied = adaptation.applied
    sources = tuple(_pin(recipe, catalog, applied.get(catalog.label)) for catalog in catalogs)
    donor = [catalog.label for catalog in catalogs].index(recipe.donor.label)
    change = layer_config(matched.stacks, [catalog.config for catalog in catalogs], donor=donor)
    plan = Plan(
        recipe=recipe,
        sources=sources,
        nodes=tuple(placed.values()),
        shards=shards,
        units=cut(shards, placed, whole_shards=options.whole_shards),
        memory=project(
            tuple(placed.values()),
            budget_bytes=options.memory_bytes,
            device=options.device,
            device_budget_bytes=options.device_memory_bytes,
            threads=options.threads,
            tile_elements=options.tile_elements,
            hold=options.hold,
        ),
        tie=matched.tie,
        stacks=matched.stacks,
        config_edits=change.edits,
        dropped=matched.dropped,
        tokenizer=tokenizer,
        notes=(
            *recipe.no_effect,
            *filter(None, map(dequantised_note, catalogs)),
            *filter(None, [experts_note(adaptation.views, stored, recipe.donor.label)]),
            *_narrowings(placed.values()),
            *_idle(placed.values()),
            *adaptation.notes,
            *change.notes,
            *remarks,
        ),
        digest="",
    )
    return replace(plan, digest=digest(plan))


_Draft = tuple[str, DType, Step, tuple[Input, ...]]


def _nodes(recipe: Recipe, seen: Sequence[View], matched: Match) -> list[_Draft]:
    maker = StepMaker(recipe)
    distinct: Distinct = {}
    drafts: list[_Draft] = []
    for part in matched.parts:
        resolve = part.resolver(distinct)
        for name in part.names:
            if name in part.kept:
                reads = inputs_of(name, part.views, (part.donor,), matched.tie)
                drafts.append((name, reads[0].dtype, KEEP, reads))
                continue
            reads = inputs_of(name, part.views, part.order, matched.tie)
            check_shapes(name, reads, seen)
            assert part.section is not None, name
            step = maker.make(name, resolve(name), part.section)
            dtype = output_dtype(name, reads, recipe, step)
            step = settle(step, reads, dtype)
            drafts.append((name, dtype, step, reads))
    return drafts


def _place(
    drafts: Iterable[_Draft],
    shards: Sequence[Shard],
    pairs: tuple[tuple[Input, Input], ...],
    tie: TiePolicy | None,
) -> dict[str, TensorNode]:
    """Nodes by name, in the order of their bytes."""
    slots = {slot.name: slot for shard in shards for slot in shard.slots}
    nodes = {
        name: TensorNode(
            slot=slots[name],
            step=step,
            inputs=reads,
            twins=pairs if tie and name == tie.embedding else (),
        )
        for name, _, step, reads in drafts
    }
    return {name: nodes[name] for name in slots}


def _pin(recipe: Recipe, catalog: Catalog, applied: AppliedAdapter | None) -> PlannedSource:
    refs = (*recipe.all_sources, *recipe.adapters)
    ref = next(source for source in refs if source.label == catalog.label)
    return PlannedSource(
        label=ref.label,
        location=catalog.location,
        revision=ref.revision,
        pins=catalog.pins,
        side_files=catalog.side_files,
        side_pins=catalog.side_pins,
        tensor_bytes=sum(entry.nbytes for entry in catalog.tensors.values()),
        adapter=applied,
    )


def _refuse_quantised(catalogs: Sequence[Catalog]) -> None:
    for catalog in catalogs:
        if scaled_codes(catalog) is None and (scheme := quantisation(catalog)):
            raise PlanError(
                f"{catalog.label} is quantised: {scheme}. Its codes are not weights and cannot be "
                "averaged; merge the unquantised checkpoint it was made from.",
                source=catalog.label,
            )


def _narrowings(nodes: Iterable[TensorNode]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        kinds = {one.dtype for one in node.inputs}
        if node.slot.dtype.mergeable and promote({*kinds, node.slot.dtype}) is not node.slot.dtype:
            counts[promote(kinds), node.slot.dtype] += 1
    return [
        f"narrowed from {wide} to {to}: {count} tensors" for (wide, to), count in counts.items()
    ]


def _idle(nodes: Iterable[TensorNode]) -> list[str]:
    """Tensors whose every source has weight 0: they come out as the base's."""
    idle = [
        node.slot.name
        for node in nodes
        if (isinstance(node.step, DeltaStep) and not any(node.step.rule.weight))
        or (
            isinstance(node.step, SpanStep)
            and node.step.relative
            and not any(node.step.coefficients or (1.0,))
        )
    ]
    if not idle:
        return []
    return [
        f"every weight is 0, so the base's value comes out: {len(idle)} tensors, {idle[0]} first"
    ]


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
    texts: dict[int, str] = {}
    for shard in plan.shards:
        hashed.update(repr((shard.name, len(shard.header), shard.nbytes)).encode())
    for node in plan.nodes:
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
