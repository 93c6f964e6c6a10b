"""Which tensors of a model those of a LoRA adapter change, and what becomes of them.

An adapter names its tensors after modules, `base_model.model.<module>.lora_A.weight`, a checkpoint
after parameters, `<module>.weight`. What an adapter holds whole (biases, modules trained with it,
embeddings saved with it) has the parameter's name and takes the place of the model's tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.lora import Lora
from raymerge.checkpoint.ties import find_embedding, is_head, tied_by_config
from raymerge.errors import PlanError, SourceError
from raymerge.plan.adapted import Adapted, Replaced
from raymerge.plan.adapter_names import prefix_of, under_other_prefixes
from raymerge.plan.graph import AppliedAdapter, Input, Read
from raymerge.plan.views import View

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.default)?(?:\.weight)?")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
# What PEFT puts between a module's name and its parameter's while it trains.
_INNER = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.[^.]+$)")
_HEAD = "lm_head.weight"
_MATRIX = 2
_MAX_NAMES = 3


@dataclass(slots=True)
class _Module:
    """What an adapter holds for one module."""

    factors: dict[str, Read] = field(default_factory=dict)
    magnitude: Read | None = None


class AdapterTensors:
    """The tensors of one adapter on their way into a view.

    Args:
        view: The model's tensors.
        catalog: The adapter's.
        lora: What its config says.
        source: Position in `Plan.sources` of the source that the result is.
        position: Position of the adapter.
    """

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

    def add(self) -> View:
        """The view with the adapter added.

        Raises:
            PlanError: A tensor of the adapter matches none of the model, or is not implemented.
            SourceError: Factors contradict each other, the config or the model's shapes.
        """
        self._sort()
        found = self._find()
        for name, read in self._whole.items():
            self._replace(found[name], read)
        transposed = _holds_conv1d(self._view.tensors)
        transposed = self._lora.transposed if transposed is None else transposed
        for module, held in self._modules.items():
            self._adapt(module, held, found[f"{module}.weight"], transposed=transposed)
        config = self._view.config
        if self.untied_head:
            config = {**config, "tie_word_embeddings": False}
        return replace(self._view, config=config, tensors=self._tensors)

    @property
    def untied_head(self) -> str | None:
        """The head of its own that it brings to a model whose head is its embedding.

        One that holds both was trained with the two tied, or not: their bytes tell.
        """
        if self._embedding is None or not tied_by_config(self._view.config):
            return None
        embedding = self._tensors[self._embedding]
        if isinstance(embedding, Replaced):
            return None
        own = (
            name
            for name, one in self._tensors.items()
            if isinstance(one, Replaced) and is_head(name) and one.shape == embedding.shape
        )
        return next(own, None)

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
        seen: dict[tuple[str, str], str] = {}
        for name, entry in self._catalog.tensors.items():
            read = Read(self._position, entry)
            inner = name.removeprefix(_PREFIX)
            if found := _FACTOR.fullmatch(inner):
                place = found[1], found[2]
                self._modules.setdefault(found[1], _Module()).factors[found[2]] = read
            elif found := _MAGNITUDE.fullmatch(inner):
                place = found[1], "magnitude"
                self._modules.setdefault(found[1], _Module()).magnitude = read
            else:
                place = _INNER.sub("", inner), "whole"
                self._whole[place[0]] = read
            if seen.setdefault(place, name) != name:
                raise SourceError(
                    f"{self._label}: {seen[place]} and {name} of the adapter are the same tensor; "
                    "remove one",
                    source=self._label,
                    tensor=name,
                )

    def _find(self) -> dict[str, str]:
        """The model's name of every tensor that the adapter changes."""
        names = dict.fromkeys([*self._whole, *(f"{module}.weight" for module in self._modules)])
        found = {name: there for name in names if (there := self._there(name))}
        # A prefix that is the model's own is not another's as well.
        own = {prefix_of(name) for name in found}
        others = [name for name in names if prefix_of(name) not in own]
        found |= under_other_prefixes(others, self._view.tensors)
        if absent := [name for name in names if name not in found]:
            raise self._unmatched(absent)
        if not found:
            raise SourceError(f"{self._label}: the adapter holds no tensor", source=self._label)
        first: dict[str, str] = {}
        for name, there in found.items():
            if first.setdefault(there, name) != name:
                raise PlanError(
                    f"{self._label}: {name} and {first[there]} of the adapter match one tensor",
                    source=self._label,
                    tensor=there,
                )
        return found

    def _there(self, name: str) -> str | None:
        """The name in the model, which may lack the first component, as a bare model does."""
        for candidate in (name, name.partition(".")[2]):
            if candidate in self._view.tensors:
                return candidate
        return name if name in self._whole and self._is_head_to_add(name) else None

    def _unmatched(self, absent: Sequence[str]) -> PlanError:
        more = len(absent) - _MAX_NAMES
        listed = ", ".join(absent[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
        return PlanError(
            f"{self._label}: {len(absent)} tensors of the adapter match none of the model: "
            f"{listed} (after {_PREFIX!r}). The model's are named like "
            f"{next(iter(self._view.tensors))!r}: is it the model the adapter was trained on?",
            source=self._label,
            tensor=absent[0],
        )

    def _is_head_to_add(self, name: str) -> bool:
        """Whether it is a head, of a model that stores none, in the shape of its embedding."""
        return (
            name == _HEAD
            and self._embedding is not None
            and not any(is_head(stored) for stored in self._view.tensors)
            and self._whole[name].shape == self._view.tensors[self._embedding].shape
        )

    def _replace(self, name: str, read: Read) -> None:
        # A head that the model does not store is its embedding, or was until it was trained.
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
        self._check_magnitudes(module, held, outputs)
        magnitude = (held.magnitude,) if held.magnitude else ()
        adapted = Adapted(
            source=self._source,
            # The same object as in the model's read: a unit is pickled, and then has it once.
            name=base.name,
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

    def _check_magnitudes(self, module: str, held: _Module, outputs: int) -> None:
        count = held.magnitude.num_elements if held.magnitude else None
        wanted = outputs if self._lora.dora else None
        if count != wanted:
            raise self._wrong(module, f"it has {count} magnitudes, expected {wanted}")

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
