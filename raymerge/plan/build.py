"""Recipe x catalogs -> plan. Pure: everything is decided here, from headers alone."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Literal

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType, promote
from raymerge.checkpoint.layout import Shard, auto_shard_bytes, lay_out
from raymerge.checkpoint.quantised import quantisation
from raymerge.checkpoint.scaled import scaled_codes
from raymerge.checkpoint.ties import TiePolicy
from raymerge.errors import PlanError
from raymerge.plan.adapters import adapt
from raymerge.plan.dequantised import dequantised, dequantised_note
from raymerge.plan.digest import digest
from raymerge.plan.experts import experts_note, in_one_layout
from raymerge.plan.graph import (
    AppliedAdapter,
    CopyStep,
    DeltaStep,
    Input,
    PlannedSource,
    SpanStep,
    Step,
    TensorNode,
    Unit,
)
from raymerge.plan.layer_config import Edit, layer_config
from raymerge.plan.match import Match, check_shapes, inputs_of, match, twins
from raymerge.plan.memory import Memory, project, upload_bytes
from raymerge.plan.parts import Stack
from raymerge.plan.reading import bytes_once, bytes_swept
from raymerge.plan.stages import Decided, PlannedStage, composed_edits, fuse
from raymerge.plan.steps import KEEP, StepMaker, output_dtype, settle
from raymerge.plan.stock import Stock, check_rows_stay
from raymerge.plan.tokenizer import PlannedTokenizer, settle_tokenizer
from raymerge.plan.units import cut
from raymerge.plan.views import View, views
from raymerge.recipe import Recipe, SourceRef
from raymerge.recipe.resolve import Distinct
from raymerge.tokenizer.files import TokenizerFiles

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
    uploads: bool = False
    """Whether units are sent to a store, in parts that are held until they have arrived."""
    remote: bool = False
    """Whether a source is read over a network: it is fetched ahead, and held where it fits."""
    hold: bool = True
    """Whether what is swept more than once is kept in memory where it fits, not read again."""
    tile_elements: int | None = None
    """A fixed tile instead of the chosen one, a multiple of 256."""
    stats: bool = False
    """Whether norms and cosines of what is merged go into the ledger."""


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
    stages: tuple[PlannedStage, ...] = ()
    """Of a recipe of several stages those that are not written, each behind what it uses."""

    @property
    def donor(self) -> PlannedSource:
        """The source that gives config, tokenizer and, itself or through stages, what is kept."""
        lender = self.recipe.lender.label
        return next(source for source in self.sources if source.label == lender)

    @property
    def merged(self) -> tuple[PlannedSource, ...]:
        """The sources without those that only lend something."""
        return self.sources[: len(self.sources) - len(self.recipe.lenders)]

    def gives(self, source: PlannedSource) -> list[str]:
        """What the output has of a source beside tensors, in a word or two, if anything."""
        donor = self.donor.label
        tokenizer = self.tokenizer.donor if self.tokenizer else donor
        if source.label == donor:
            return ["config and tokenizer" if tokenizer == donor else "config"]
        return ["tokenizer"] if source.label == tokenizer else []

    @property
    def all_nodes(self) -> Iterator[TensorNode]:
        """Every tensor that is worked out: the output's, then those of the stages inside it."""
        yield from self.nodes
        for stage in self.stages:
            yield from stage.nodes

    def used_by(self, source: PlannedSource) -> list[str]:
        """Names of the stages that a source goes into, `output` for one without."""
        ref = next(
            (
                ref
                for ref in self.recipe.checkpoints
                if source.label in (ref.label, ref.adapter and ref.adapter.label)
            ),
            None,
        )
        if ref is None:
            return []  # it lends something, and is not merged
        stages = (*(stage.recipe for stage in self.stages), self.recipe)
        return [
            stage.name or "output"
            for stage in stages
            if any(ref.identity == one.identity for one in stage.all_sources)
        ]

    def label(self, one: Input) -> str:
        """What an input's source, or the stage whose result it is, is called."""
        behind = one.source - len(self.sources)
        return self.stages[behind].name if behind >= 0 else self.sources[one.source].label

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
        budget = self.memory.budget
        merged = sum(bytes_swept(node, budget) for node in self.nodes)
        compared = sum(a.read_bytes + b.read_bytes for n in self.nodes for a, b in n.twins)
        surveyed = sum(
            bytes_once(node, budget)
            for node in self.nodes
            if isinstance(node.step, DeltaStep) and node.step.surveyed
        )
        return merged + compared + SURVEY_SWEEPS * surveyed

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
        catalogs: One per `recipe.read`, in that order.
        options: Budgets and limits.
        remarks: Further lines for the reader, such as differences between the sources' configs.
        tokenizer_files: Those of every source, by label; one that is not in it has none.

    Raises:
        PlanError: Sources do not match each other or the recipe, are quantised, or do not fit.
        SourceError: A tokenizer that the recipe needs cannot be read.
    """
    _refuse_quantised(catalogs)
    stored = dequantised(views(catalogs), catalogs)
    stock = Stock(recipe, catalogs, tokenizer_files)
    seen, stages = fuse(recipe, stored, lambda stage, seen: _decide(stage, seen, stock, options))
    decided = _decide(recipe, seen, stock, options)
    nodes, shards = decided.nodes, decided.shards
    if options.stats:
        nodes = {name: _with_stats(node) for name, node in nodes.items()}
    applied = ChainMap(*(dict(stage.applied) for stage in stages), dict(decided.applied))
    sources = tuple(
        _pin(ref, catalog, applied.get(catalog.label))
        for ref, catalog in zip(recipe.read, catalogs, strict=True)
    )
    plan = Plan(
        recipe=recipe,
        sources=sources,
        nodes=tuple(nodes.values()),
        shards=shards,
        units=cut(shards, nodes, whole_shards=options.whole_shards),
        memory=project(
            tuple(nodes.values()),
            budget_bytes=options.memory_bytes,
            device=options.device,
            device_budget_bytes=options.device_memory_bytes,
            threads=options.threads,
            tile_elements=options.tile_elements,
            hold=options.hold,
            remote=options.remote,
            uploaded_bytes=upload_bytes(max(s.nbytes for s in shards)) if options.uploads else 0,
        ),
        tie=decided.matched.tie,
        stacks=decided.matched.stacks,
        config_edits=composed_edits(recipe, stages, decided),
        dropped=decided.matched.dropped,
        tokenizer=decided.tokenizer,
        notes=(
            *recipe.no_effect,
            *filter(None, map(dequantised_note, catalogs)),
            *(note for stage in stages for note in stage.notes),
            *decided.notes,
            *remarks,
        ),
        digest="",
        stages=stages,
    )
    return replace(plan, digest=digest(plan))


def _with_stats(node: TensorNode) -> TensorNode:
    return node if isinstance(node.step, CopyStep) else replace(node, stats=True)


_Draft = tuple[str, DType, Step, tuple[Input, ...]]


def _decide(recipe: Recipe, views: Sequence[View], stock: Stock, options: PlanOptions) -> Decided:
    """Plan one stage over its sources."""
    donor = recipe.donor.label
    adaptation = adapt(recipe, stock.catalogs, views, whole=stock.recipe)
    stored = in_one_layout(adaptation.views, donor, recipe.experts)
    seen, tokenizer = settle_tokenizer(
        recipe, stored, stock.tokenizer_files(recipe), stock.lender(recipe)
    )
    check_rows_stay(recipe, seen)
    matched = match(recipe, seen, stored=stored)
    drafts = _nodes(recipe, seen, matched)
    if not drafts:
        raise PlanError(f"{recipe.path}: nothing is left to write: `drop:` covers every tensor")
    outputs = [(name, dtype, inputs[0].shape) for name, dtype, _, inputs in drafts]
    shard_bytes = options.shard_bytes or auto_shard_bytes(
        sum(dtype.num_bytes(shape) for _, dtype, shape in outputs)
    )
    shards = lay_out(outputs, max_shard_bytes=shard_bytes)
    nodes = _place(drafts, shards, twins(matched, stored), matched.tie)
    labels = [view.label for view in seen]
    configs = [view.config for view in seen]
    change = layer_config(matched.stacks, configs, donor=labels.index(donor))
    return Decided(
        matched=matched,
        nodes=nodes,
        shards=shards,
        tokenizer=tokenizer and stock.lent(recipe, tokenizer),
        config_edits=change.edits,
        applied=adaptation.applied,
        notes=(
            *filter(None, [experts_note(adaptation.views, stored, donor, recipe.experts)]),
            *_narrowings(nodes.values()),
            *_idle(nodes.values()),
            *adaptation.notes,
            *change.notes,
        ),
    )


def _nodes(recipe: Recipe, seen: Sequence[View], matched: Match) -> list[_Draft]:
    maker = StepMaker(recipe)
    distinct: Distinct = {}
    drafts: list[_Draft] = []
    inputs = {
        name: inputs_of(
            name, part.views, (part.donor,) if name in part.kept else part.order, matched.tie
        )
        for part in matched.parts
        for name in part.names
    }
    check_shapes(inputs, seen)
    for part in matched.parts:
        resolve = part.resolver(distinct)
        for name in part.names:
            reads = inputs[name]
            if name in part.kept:
                drafts.append((name, reads[0].dtype, KEEP, reads))
                continue
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
            twins=(*(pairs if tie and name == tie.embedding else ()), *_inner_twins(reads)),
        )
        for name, _, step, reads in drafts
    }
    return {name: nodes[name] for name in slots}


def _inner_twins(inputs: Iterable[Input]) -> Iterator[tuple[Input, Input]]:
    """What is compared for a tensor is compared for whatever is merged from it."""
    for one in inputs:
        for inner in one.results:
            yield from inner.twins


def _pin(ref: SourceRef, catalog: Catalog, applied: AppliedAdapter | None) -> PlannedSource:
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
        if catalog.tensors and scaled_codes(catalog) is None and (scheme := quantisation(catalog)):
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
