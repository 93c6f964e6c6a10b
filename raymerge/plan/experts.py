"""Mixtures of experts: one model, stored a tensor for each expert or packed.

    separate   P.experts.3.gate_proj.weight (F, H), ...up_proj..., ...down_proj.weight (H, F);
               Mixtral's names are w1, w3 and w2
    packed     P.experts.gate_up_proj (E, 2F, H), gate rows before up rows; P.experts.down_proj

Which of the two a file holds depends on what wrote it. The donor's layout is what comes out, unless
the recipe names one, and a source in the other one is seen in it: runs of the very same bytes under
other names. So is a trim within an expert, or within all of a layer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from raymerge.errors import PlanError
from raymerge.plan.graph import Derived, Input, TensorNode
from raymerge.plan.views import View
from raymerge.recipe.model import ExpertLayout

_SEPARATE = re.compile(r"(.+\.)experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_PACKED = re.compile(r"(.+\.)experts\.(gate_up_proj|down_proj)")
_ROUTER = re.compile(r"(.+\.)gate\.weight")
_PART = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_MIXTRAL = {part: name for name, part in _PART.items()}
# One block, by the name that files and by the name that newer code has for it.
_BLOCKS = (("block_sparse_moe.", "mlp."), ("mlp.", "block_sparse_moe."))
_BIASES = ("gate_up_proj_bias", "gate_up_proj.bias", "down_proj_bias", "down_proj.bias")
_STACK = 3


@dataclass(frozen=True, slots=True)
class Run:
    """Elements `[start, start + count)` of a tensor."""

    of: Input
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Derived):
    """Runs of other tensors of the same dtype, one behind another."""

    runs: tuple[Run, ...]

    @property
    def how(self) -> str:
        """See `Derived.how`."""
        return f"{len(self.runs)} runs" if len(self.runs) > 1 else f"part of {self.runs[0].of.name}"

    @property
    def read_bytes(self) -> int:
        """See `Derived.read_bytes`; of a tensor that is used in part, that part."""
        return self.dtype.num_bytes(self.shape)

    @property
    def identity(self) -> tuple[object, ...]:
        """See `Derived.identity`."""
        runs = tuple((run.of.identity, run.start, run.count) for run in self.runs)
        return "Joined", self.source, self.name, self.dtype.value, self.shape, runs

    @property
    def results(self) -> tuple[TensorNode, ...]:
        """See `Derived.results`."""
        return tuple({id(node): node for run in self.runs for node in run.of.results}.values())

    def scratch_bytes(self, tile_elements: int) -> int:
        """What its parts need: results of stages all at once, others one after another."""
        parts = {id(run.of): run.of for run in self.runs}.values()
        results = sum(one.scratch_bytes(tile_elements) for one in parts if one.results)
        return results + max(one.scratch_bytes(tile_elements) for one in parts)


def in_one_layout(views: Sequence[View], donor: str, layout: ExpertLayout = "donor") -> list[View]:
    """The views with the experts of every source in one layout: the donor's, or the one named.

    Raises:
        PlanError: Packed experts have to be taken apart, and are not packed in the way known here.
    """
    like = next(view for view in views if view.label == donor)
    names = tuple(dict.fromkeys(_names(like, layout)))
    return [_laid_out(view, names) for view in views]


def experts_note(
    views: Sequence[View], seen: Sequence[View], donor: str, layout: ExpertLayout = "donor"
) -> str | None:
    """What a reader should know where layouts change."""
    other = [v.label for v, now in zip(views, seen, strict=True) if v.tensors is not now.tensors]
    if not other:
        return None
    like = next(view for view in seen if view.label == donor)
    kind = "packed" if any(map(_PACKED.fullmatch, like.tensors)) else "a tensor each"
    if layout != "donor":
        found = f"experts come out {kind}, as the recipe says, and are stored otherwise in "
        return f"{found}{', '.join(other)}; a density counts within one such tensor"
    return (
        f"experts are stored {kind} in {donor} and otherwise in {', '.join(other)}; they come out "
        f"as in {donor}, and a density counts within one such tensor"
    )


def _names(like: View, layout: ExpertLayout) -> Iterator[str]:
    """The donor's tensors, their experts under the names that the layout has for them."""
    mixtral = like.config.get("model_type") == "mixtral"
    for name, one in like.tensors.items():
        packed, separate = _PACKED.fullmatch(name), _SEPARATE.fullmatch(name)
        if layout == "separate" and packed and len(one.shape) == _STACK:
            prefix = _block(packed[1], "block_sparse_moe.") if mixtral else packed[1]
            parts = ("gate_proj", "up_proj") if packed[2] == "gate_up_proj" else ("down_proj",)
            for expert in range(one.shape[0]):
                for part in parts:
                    yield f"{prefix}experts.{expert}.{_MIXTRAL[part] if mixtral else part}.weight"
        elif layout == "separate" and mixtral and (router := _ROUTER.fullmatch(name)):
            yield f"{_block(router[1], 'block_sparse_moe.')}gate.weight"
        elif layout == "packed" and separate:
            down = _PART.get(separate[3], separate[3]) == "down_proj"
            yield f"{_block(separate[1], 'mlp.')}experts.{'down_proj' if down else 'gate_up_proj'}"
        elif layout == "packed" and (router := _ROUTER.fullmatch(name)):
            yield f"{_block(router[1], 'mlp.')}gate.weight"
        else:
            yield name


def _block(prefix: str, called: str) -> str:
    """The prefix of a mixture's block, the block under another of its names."""
    for known, _ in _BLOCKS:
        if prefix.endswith(known):
            return prefix.removesuffix(known) + called
    return prefix


def _laid_out(view: View, names: Iterable[str]) -> View:
    changed: dict[str, Input] = {}
    used: set[str] = set()
    for name in names:
        if name in view.tensors:
            continue
        made = _packed(view, name) or _separated(view, name) or _router(view, name)
        if made is not None:
            changed[name], parts = made
            used |= parts
    if not changed:
        return view
    kept = {name: one for name, one in view.tensors.items() if name not in used}
    return replace(view, tensors=kept | changed)


_Made = tuple[Input, set[str]]
"""An input under the donor's name, and the names of the tensors it replaces."""


def _packed(view: View, name: str) -> _Made | None:
    """The donor's packed tensor, from one for each expert."""
    found = _PACKED.fullmatch(name)
    if not found:
        return None
    parts = ("gate_proj", "up_proj") if found[2] == "gate_up_proj" else ("down_proj",)
    for prefix in _prefixes(found[1]):
        experts = list(_experts(view, prefix, parts))
        if experts:
            first = experts[0]
            alike = {(one.dtype, one.shape) for one in experts} == {(first.dtype, first.shape)}
            if not alike or len(first.shape) != _STACK - 1:
                return None
            rows, columns = first.shape
            shape = (len(experts) // len(parts), len(parts) * rows, columns)
            return _joined(name, shape, [Run(e, 0, e.num_elements) for e in experts])
    return None


def _experts(view: View, prefix: str, parts: tuple[str, ...]) -> Iterator[Input]:
    """The parts of expert 0, then of expert 1, up to the first that is not there."""
    expert = 0
    while True:
        ones = [_expert(view.tensors, prefix, expert, part) for part in parts]
        if any(one is None for one in ones):
            return
        yield from (one for one in ones if one is not None)
        expert += 1


def _expert(tensors: Mapping[str, Input], prefix: str, expert: int, part: str) -> Input | None:
    for spelled in (part, _MIXTRAL[part]):
        if one := tensors.get(f"{prefix}experts.{expert}.{spelled}.weight"):
            return one
    return None


def _separated(view: View, name: str) -> _Made | None:
    """One expert's tensor, from the packed one."""
    found = _SEPARATE.fullmatch(name)
    if not found:
        return None
    part = _PART.get(found[3], found[3])
    packed = "down_proj" if part == "down_proj" else "gate_up_proj"
    prefix = next((p for p in _prefixes(found[1]) if f"{p}experts.{packed}" in view.tensors), None)
    if prefix is None:
        return None
    stack = view.tensors[f"{prefix}experts.{packed}"]
    _check_packed(view, f"{prefix}experts.")
    if int(found[2]) >= stack.shape[0]:
        return None
    _, rows, columns = stack.shape
    halves = 2 if packed == "gate_up_proj" else 1
    count = rows // halves * columns
    start = int(found[2]) * rows * columns + (count if part == "up_proj" else 0)
    return _joined(name, (rows // halves, columns), [Run(stack, start, count)])


def _check_packed(view: View, block: str) -> None:
    """Raise unless experts are packed so that those of one are runs of rows.

    GPT-OSS packs them (E, H, 2F) with the columns of gate and up in turn, and has biases; Llama 4
    packs them (E, H, 2F). Where 2F = H one shape alone does not tell: the two together always do.
    """
    shapes = {
        name: list(one.shape)
        for part in ("gate_up_proj", "down_proj")
        if (one := view.tensors.get(name := f"{block}{part}"))
    }
    bias = next((f"{block}{b}" for b in _BIASES if f"{block}{b}" in view.tensors), None)
    if bias is None and _fit(list(shapes.values())):
        return
    found = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise PlanError(
        f"{view.label}: experts cannot be taken apart: it has {found}"
        f"{f', with {bias}' if bias else ''}; expected gate_up_proj (experts, 2 * width, hidden), "
        "gate rows before up rows, and down_proj (experts, hidden, width), without biases. Merge "
        "them as they are packed: without `experts: separate`, and with a donor that has them "
        "packed",
        source=view.label,
        tensor=bias or next(iter(shapes)),
    )


def _fit(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether they are (E, 2F, H) and (E, H, F)."""
    if [len(shape) for shape in shapes] != [_STACK, _STACK]:
        return False
    (experts, rows, hidden), down = shapes
    return rows % 2 == 0 and list(down) == [experts, hidden, rows // 2]


def _router(view: View, name: str) -> _Made | None:
    """The router, where its block goes by another name."""
    found = _ROUTER.fullmatch(name)
    for prefix in _prefixes(found[1])[1:] if found else ():
        if one := view.tensors.get(f"{prefix}gate.weight"):
            return _joined(name, one.shape, [Run(one, 0, one.num_elements)])
    return None


def _prefixes(prefix: str) -> list[str]:
    """A block's name, and what else it may be called."""
    others = [prefix.removesuffix(a) + b for a, b in _BLOCKS if prefix.endswith(a)]
    return [prefix, *others]


def _joined(name: str, shape: tuple[int, ...], runs: list[Run]) -> _Made:
    reads = tuple(dict.fromkeys(read for run in runs for read in run.of.reads))
    first = runs[0].of
    made = Joined(
        source=first.source,
        name=name,
        dtype=first.dtype,
        shape=shape,
        reads=reads,
        runs=tuple(runs),
    )
    return made, {run.of.name for run in runs}
