"""Coefficients from inner products, once a tensor's are in; what has none is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymerge.kernels.groups import GroupSums
from raymerge.plan.graph import SpanStep, TensorNode
from raymerge.runtime import coefficients
from raymerge.runtime.coefficients import group_coefficients, tensor_coefficients
from tests.checkpoints import llama_config, tiny_llama_tensors
from tests.conftest import Place, raw
from tests.plans import UP, plan, recipe

NORM = "model.norm.weight"


def rows_of_a_plan() -> tuple[TensorNode, SpanStep]:
    """A tensor of 64 rows under nuslerp by row, relative to a base."""
    merge = recipe("nuslerp", "a", "b", base="base", parameters={"nuslerp_flatten": False})
    found = next(node for node in plan(merge).nodes if node.slot.name == UP)
    assert isinstance(found.step, SpanStep)
    return found, found.step


@pytest.mark.parametrize("entries", [1, 4, 12, 100, 2**16])
def test_how_many_matrices_are_worked_on_at_once_changes_nothing(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, step = rows_of_a_plan()
    sums = GroupSums.new(node.groups, 2)
    vectors = np.random.default_rng(0).normal(size=(2, node.groups.count, 5))
    sums.totals[:] = [(vectors[i] * vectors[j]).sum(1) for i, j in ((0, 0), (0, 1), (1, 1))]
    each = [tensor_coefficients(node, step, gram) for gram in sums.grams(2, 0, node.groups.count)]
    monkeypatch.setattr(coefficients, "MATRIX_ENTRIES", entries)

    found = group_coefficients(node, step, sums)

    assert found.dtype == np.float32
    assert np.array_equal(found.T, np.array(each, np.float32))


def write(place: Place, **norms: list[float]) -> None:
    """Models that differ in the norm alone, which starts with these values."""
    for name, values in norms.items():
        tensors = tiny_llama_tensors(0, dtype=torch.float32)
        tensors[NORM][:] = 0
        tensors[NORM][: len(values)] = torch.tensor(values)
        place.model(name, tensors, config=llama_config(tensors))


def test_directions_that_cancel_are_refused_with_the_tensor_s_name(place: Place) -> None:
    write(place, base=[0, 0], a=[1.0, 0], b=[-0.5, 0.75**0.5], c=[-0.5, -(0.75**0.5)])
    asked = place.recipe("multislerp", ["a", "b", "c"], base="base", parameters={"weight": 1.0})

    done = place.merge(asked, "out", "--json")
    assert (done.rc, done.error["tensor"]) == (1, NORM)
    assert "the weighted directions of 3 sources cancel" in done.error["message"]
    assert not list((place / "out").glob("[!.]*")), "something was published"


@pytest.mark.parametrize("method", ["multislerp", "model_stock"])
def test_a_tensor_that_no_source_moved_comes_out_as_the_base_s(place: Place, method: str) -> None:
    write(place, base=[1.0, 2], a=[1.0, 2], b=[1.0, 2], c=[1.0, 2])
    knobs = {"weight": 1.0} if method == "multislerp" else {}

    merged = place.merged(place.recipe(method, ["a", "b", "c"], base="base", parameters=knobs))
    assert raw(merged[NORM])[:8] == np.array([1, 2], np.float32).tobytes()
