"""Nothing is lost in silence: each tensor of each source is merged, copied or named.

Sources of one model, damaged at random: tensors missing, extra, of another shape, renamed, tied,
with experts packed. Either the plan reads every stored tensor (or says that it drops it), or it is
refused and names one of those that stand in the way.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.catalog import Catalog
from raymerge.checkpoint.dtypes import DType
from raymerge.errors import PlanError
from raymerge.plan.build import Plan
from raymerge.recipe import Recipe
from tests.plans import EMBEDDING, HEAD, MODEL, NORM, UP, catalog, plan, recipe

Tensors = dict[str, tuple[DType, tuple[int, ...]]]
EXPERTS = 2
MOE = "model.layers.0.mlp.experts"
SEPARATE: Tensors = {
    f"{MOE}.{expert}.{part}.weight": (DType.BF16, shape)
    for expert in range(EXPERTS)
    for part, shape in (("gate_proj", (6, 4)), ("up_proj", (6, 4)), ("down_proj", (4, 6)))
}
PACKED: Tensors = {
    f"{MOE}.gate_up_proj": (DType.BF16, (EXPERTS, 12, 4)),
    f"{MOE}.down_proj": (DType.BF16, (EXPERTS, 4, 6)),
}


@st.composite
def sources(draw: st.DrawFn) -> Catalog:
    """One source: the model, with up to two things wrong with it."""
    packed = draw(st.booleans())
    tensors: Tensors = {**MODEL, **(PACKED if packed else SEPARATE)}
    config: dict[str, Any] = {}
    for fault in draw(st.lists(st.sampled_from(FAULTS), max_size=2, unique=True)):
        if fault == "missing":
            del tensors[draw(st.sampled_from([name for name in tensors if name != EMBEDDING]))]
        elif fault == "extra":
            tensors["model.layers.0.extra.weight"] = (DType.BF16, (3,))
        elif fault == "reshaped":
            tensors[NORM] = (DType.BF16, (17,))
        elif fault == "renamed":
            tensors["model.layers.0.mlp.other.weight"] = tensors.pop(UP, (DType.BF16, (64, 16)))
        elif fault == "tied":
            tensors.pop(HEAD, None)
            config["tie_word_embeddings"] = True
    return catalog("", tensors, config=config)


def planned_or_refused(merge: Recipe, catalogs: list[Catalog]) -> Plan | PlanError:
    """The plan, or why there is none."""
    try:
        return plan(merge, catalogs)
    except PlanError as error:
        return error


FAULTS = ("missing", "extra", "reshaped", "renamed", "tied")


@given(st.lists(sources(), min_size=2, max_size=3), st.sampled_from(["linear", "ties"]))
def test_each_tensor_is_merged_copied_or_named(made: list[Catalog], method: str) -> None:
    labels = ["base", "a", "b"][: len(made)]
    catalogs = [
        catalog(
            label,
            {name: (entry.dtype, entry.shape) for name, entry in one.tensors.items()},
            config=one.config,
        )
        for label, one in zip(labels, made, strict=True)
    ]
    base = "base" if method == "ties" else None
    merge = recipe(method, *(labels[1:] if base else labels), base=base)
    planned = planned_or_refused(merge, catalogs)
    if isinstance(planned, PlanError):
        held = {name for one in catalogs for name in one.tensors}
        assert any(name in str(planned) for name in held), planned
        return
    read = {
        (input_read.source, input_read.entry.name)
        for node in planned.nodes
        for one in (*node.inputs, *(each for pair in node.twins for each in pair))
        for input_read in one.reads
    }
    for position, one in enumerate(catalogs):
        for name in one.tensors:
            assert (position, name) in read or name in planned.dropped, (one.label, name)
