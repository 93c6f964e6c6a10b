"""LoRA adapters: sources whose tensors are worked out from a model's and an adapter's.

`model+adapter` is a source of its own. An adapter alone under `models` is a task vector: it is
added to the recipe's base. Either way the source's view has every tensor that the adapter changes
replaced by a derived one, and nothing merged is written anywhere in between.

An adapter names its tensors after modules, `base_model.model.<module>.lora_A.weight`, a checkpoint
after parameters, `<module>.weight`. What an adapter holds whole (biases, modules trained with it,
embeddings saved with it) has the parameter's name and takes the place of the model's tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.lora import Lora
from raymerge.checkpoint.ties import find_embedding, tied_by_config
from raymerge.errors import PlanError, SourceError
from raymerge.plan.adapted import Adapted, Replaced
from raymerge.plan.graph import AppliedAdapter, Input, Read
from raymerge.plan.views import View
from raymerge.recipe import Recipe, SourceRef

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
# What PEFT puts between a module's name and its parameter's while it trains.
_INNER = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.[^.]+$)")
_HEAD = "lm_head.weight"
_MATRIX = 2
_MAX_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Views with every adapter added."""

    views: list[View]
    """One per `recipe.all_sources`, in that order."""
    applied: Mapping[str, AppliedAdapter]
    """What each adapter does, by the label of its catalog."""
    notes: tuple[str, ...]
    """Adapters that were trained on a model of another name."""


def adapt(recipe: Recipe, catalogs: Sequence[Catalog], views: Sequence[View]) -> Adaptation:
    """Add the adapters of a recipe to what they belong to.

    Args:
        recipe: The recipe.
        catalogs: One per `recipe.all_sources` and then per `recipe.adapters`, in that order.
        views: One per catalog.

    Raises:
        PlanError: An adapter has nothing to be added to, or does not fit it.
        SourceError: An adapter contradicts its own config.
    """
    positions = {catalog.label: position for position, catalog in enumerate(catalogs)}
    adapted = {view.label: view for view in views[: len(recipe.all_sources)]}
    applied: dict[str, AppliedAdapter] = {}
    notes: list[str] = []
    # The base first: an adapter alone is added to it, with whatever the base has of its own.
    for source in sorted(recipe.all_sources, key=lambda source: source != recipe.base):
        is_adapter = catalogs[positions[source.label]].lora is not None
        if is_adapter:
            under = _base_of(source, recipe)
            view, adapter = replace(adapted[under.label], label=source.label), source
        elif source.adapter:
            under, view, adapter = source, adapted[source.label], source.adapter
        else:
            continue
        catalog = catalogs[positions[adapter.label]]
        assert catalog.lora is not None, adapter
        work = _Work(view, catalog, catalog.lora, positions[source.label], positions[adapter.label])
        adapted[source.label] = work.run()
        applied[adapter.label] = work.applied()
        notes.extend(_other_base(adapter, catalog.lora, under))
    return Adaptation(views=list(adapted.values()), applied=applied, notes=tuple(notes))


def _base_of(source: SourceRef, recipe: Recipe) -> SourceRef:
    """The base that an adapter alone is added to."""
    if source.adapter:
        raise PlanError(
            f"{source.label}: {source.location} is a LoRA adapter itself; + adds an adapter to a "
            "model",
            source=source.label,
        )
    if recipe.base is None:
        raise PlanError(
            f"{source.label} is a LoRA adapter and the recipe has no base_model to add it to. Add "
            f"base_model: <model>, or write <model>+{source.location}",
            source=source.label,
        )
    if source == recipe.base:
        raise PlanError(
            f"base_model: {source.label} is a LoRA adapter, not a model; write the model that it "
            f"was trained on, or <model>+{source.location}",
            source=source.label,
        )
    return recipe.base


def _other_base(adapter: SourceRef, lora: Lora, under: SourceRef) -> list[str]:
    """A note where the adapter was trained on something of another name."""
    if lora.base is None or _name(lora.base) == _name(under.location):
        return []
    return [
        f"{adapter.label}: trained on {lora.base} by its config, added to {under.location} here"
    ]


def _name(location: str) -> str:
    """The last component; of a snapshot in the Hub's cache the repository's."""
    if found := re.search(r"models--(?:.+--)?([^/]+)/snapshots/", location):
        return found[1]
    return os.path.basename(os.path.normpath(location))  # noqa: PTH119 - it may be a repository


@dataclass(slots=True)
class _Module:
    """What an adapter holds for one module."""

    factors: dict[str, Read] = field(default_factory=dict)
    magnitude: Read | None = None


class _Work:
    """One adapter on its way into a view."""

    def __init__(
        self, view: View, catalog: Catalog, lora: Lora, source: int, position: int
    ) -> None:
        self._view = view
        self._catalog = catalog
        self._lora = lora
        self._source = source
        self._position = position
        self._tensors: dict[str, Input] = dict(view.tensors)
        self._modules: dict[str, _Module] = {}
        self._whole: dict[str, Read] = {}
        self._embedding = find_embedding(view)
        self._replaced = 0
        self._adapted: list[Adapted] = []

    def run(self) -> View:
        """The view with the adapter added."""
        self._sort()
        found = self._find()
        for name, read in self._whole.items():
            self._replace(found[name], read)
        transposed = _holds_conv1d(self._view.tensors)
        transposed = self._lora.transposed if transposed is None else transposed
        for module, held in self._modules.items():
            self._adapt(module, held, found[f"{module}.weight"], transposed=transposed)
        return replace(self._view, tensors=self._tensors)

    def applied(self) -> AppliedAdapter:
        """What was done."""
        return AppliedAdapter(
            source=self._view.label,
            ranks=tuple(sorted({one.rank for one in self._adapted})),
            scalings=tuple(sorted({one.scaling for one in self._adapted})),
            adapted=len(self._adapted),
            replaced=self._replaced,
        )

    def _sort(self) -> None:
        """Put every tensor of the adapter to its module, or to the tensor that it replaces."""
        for name, entry in self._catalog.tensors.items():
            read = Read(self._position, entry)
            inner = name.removeprefix(_PREFIX)
            if found := _FACTOR.fullmatch(inner):
                self._modules.setdefault(found[1], _Module()).factors[found[2]] = read
            elif found := _MAGNITUDE.fullmatch(inner):
                self._modules.setdefault(found[1], _Module()).magnitude = read
            else:
                self._whole[_INNER.sub("", inner)] = read

    def _find(self) -> dict[str, str]:
        """The model's name of every tensor that the adapter changes."""
        found: dict[str, str] = {}
        absent: list[str] = []
        for name in (*self._whole, *(f"{module}.weight" for module in self._modules)):
            # A checkpoint of the bare model lacks the first component of its modules' names.
            candidates = name, name.partition(".")[2]
            there = next((one for one in candidates if one in self._view.tensors), None)
            if there is None and name in self._whole and self._is_tied_head(name):
                there = name
            if there is None:
                absent.append(name)
            else:
                found[name] = there
        if not self._catalog.tensors:
            raise SourceError(f"{self._label}: the adapter holds no tensor", source=self._label)
        if absent:
            more = len(absent) - _MAX_NAMES
            listed = ", ".join(absent[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            raise PlanError(
                f"{self._label}: {len(absent)} tensors of the adapter match none of the model: "
                f"{listed} (after {_PREFIX!r}). The model's are named like "
                f"{next(iter(self._view.tensors))!r}: is it the model the adapter was trained on?",
                source=self._label,
                tensor=absent[0],
            )
        return found

    def _is_tied_head(self, name: str) -> bool:
        """Whether it is a head, of a model that stores none, in the shape of its embedding."""
        return (
            name == _HEAD
            and self._embedding is not None
            and tied_by_config(self._view.config) is not False
            and self._whole[name].shape == self._view.tensors[self._embedding].shape
        )

    def _replace(self, name: str, read: Read) -> None:
        # A head that the model does not store is its embedding.
        stored = self._view.tensors.get(name) or self._view.tensors[self._embedding or name]
        if stored.shape != read.shape:
            raise PlanError(
                f"{self._label}: {name} has shape {list(read.shape)} in the adapter and "
                f"{list(stored.shape)} in the model. Rows that training added, such as those of "
                "new tokens, cannot be merged: merge the adapter into its model with PEFT "
                "(merge_and_unload) and give the result.",
                source=self._label,
                tensor=name,
            )
        self._tensors[name] = Replaced(
            source=self._source,
            name=name,
            dtype=stored.dtype,
            shape=read.shape,
            reads=(read,),
        )
        self._replaced += 1

    def _adapt(self, module: str, held: _Module, name: str, *, transposed: bool) -> None:
        a, b, embeds = self._factors(module, held)
        base = self._tensors[name]
        rank, (outputs, inputs) = a.shape[0], (b.shape[0], a.shape[1])
        if embeds or outputs != inputs:
            # An embedding is (tokens, features), which is (inputs, outputs).
            transposed = embeds or base.shape == (inputs, outputs)
        expected = (inputs, outputs) if transposed else (outputs, inputs)
        if base.shape != expected:
            raise self._wrong(module, f"B @ A is {list(expected)}, the model's {list(base.shape)}")
        if base.dtype is DType.F64 or not base.dtype.mergeable:
            raise self._wrong(module, f"the model's is {base.dtype.torch_name}")
        if self._lora.dora != (held.magnitude is not None) or (
            held.magnitude is not None and held.magnitude.num_elements != outputs
        ):
            wanted = f"{outputs}" if self._lora.dora else "none"
            count = held.magnitude.num_elements if held.magnitude else "none"
            raise self._wrong(module, f"it has {count} magnitudes, expected {wanted}")
        magnitude = (held.magnitude,) if held.magnitude else ()
        adapted = Adapted(
            source=self._source,
            name=name,
            dtype=base.dtype,
            shape=base.shape,
            reads=(*base.reads, a, b, *magnitude),
            base=base,
            a=a,
            b=b,
            magnitude=held.magnitude,
            rank=rank,
            scaling=self._lora.scaling_of(module),
            transposed=transposed,
        )
        self._tensors[name] = adapted
        self._adapted.append(adapted)

    def _factors(self, module: str, held: _Module) -> tuple[Read, Read, bool]:
        """A, B, and whether they are an embedding's."""
        embeds = "embedding_A" in held.factors
        kind = "embedding_" if embeds else ""
        if held.factors.keys() != {f"{kind}A", f"{kind}B"}:
            raise self._wrong(module, f"it has {' and '.join(sorted(held.factors)) or 'no factor'}")
        a, b = held.factors[f"{kind}A"], held.factors[f"{kind}B"]
        shapes = f"A is {list(a.shape)} and B {list(b.shape)}"
        if len(a.shape) != _MATRIX or len(b.shape) != _MATRIX:
            raise PlanError(
                f"{self._label}: {module}: {shapes}, factors of a convolution, which raymerge does "
                "not implement; merge the adapter into its model with PEFT (merge_and_unload)",
                source=self._label,
                tensor=a.name,
            )
        rank = self._lora.rank_of(module)
        if a.shape[0] != rank or b.shape[1] != rank:
            raise self._wrong(module, f"{shapes}, and its config says rank {rank}")
        return a, b, embeds

    @property
    def _label(self) -> str:
        return self._catalog.label

    def _wrong(self, module: str, why: str) -> SourceError:
        return SourceError(
            f"{self._label}: the adapter does not fit at {module}: {why}",
            source=self._label,
            tensor=f"{module}.weight",
        )


def _holds_conv1d(tensors: Mapping[str, Input]) -> bool | None:
    """Whether matrices are (inputs, outputs), as a bias beside one that is not square tells."""
    found = None
    for name, one in tensors.items():
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if len(one.shape) != _MATRIX or bias is None or one.shape[0] == one.shape[1]:
            continue
        if bias.shape == one.shape[1:]:
            return True
        found = False
    return found
