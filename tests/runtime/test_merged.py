"""A stage's result as an input: any bytes of it, in any order, are those of the whole."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from threading import Event

import numpy as np
import pytest
import torch

import raymerge
from raymerge.errors import NonFiniteError, SourceError
from raymerge.kernels import cpu
from raymerge.kernels.tile import Bytes
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.plan.memory import Budget
from raymerge.plan.merged import Merged
from raymerge.runtime.derived.merged import Workshop
from raymerge.runtime.device import load_kernels
from raymerge.runtime.readers import Filler, Readers
from raymerge.runtime.stopping import StoppedError
from tests.conftest import Place, run_settings

ELEMENTS = 5000
TILE = 512
STAGES = {
    "linear": "merge_method: linear\nparameters: {weight: 0.3}",
    "slerp": "merge_method: slerp\nbase_model: base\nmodels: [a]\nparameters: {t: 0.4}",
    "ties": "merge_method: ties\nbase_model: base\nparameters: {weight: 1, density: 0.3}",
    "dare_ties": (
        "merge_method: dare_ties\nbase_model: base\nparameters: {weight: 1, density: 0.3}"
    ),
    "passthrough": "merge_method: passthrough\nmodels: [a]",
}
EACH_STAGE = pytest.mark.parametrize("method", STAGES)


@pytest.fixture
def models(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Tensors of 5000 entries; task vectors on a grid, so that a threshold has many ties."""
    monkeypatch.chdir(place.path)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ELEMENTS, generator=generator)
    place.model("base", {"w": base})
    for name in "ab":
        steps = torch.randint(-3, 4, (ELEMENTS,), generator=generator) * 2.0**-4
        place.model(name, {"w": (base * 2**8).round() / 2**8 + steps})
    place.model("base", {"w": (base * 2**8).round() / 2**8})
    return place


def result(place: Place, method: str, *, stop: Event | None = None, **top: str) -> Filler:
    """What fills buffers with the result of a stage, in a recipe that does nothing else."""
    models = "" if "models" in STAGES[method] else "models: [a, b]\n"
    keys = "".join(f"{key}: {value}\n" for key, value in top.items())
    (place / "r.yaml").write_text(
        f"name: one\n{STAGES[method]}\n{models}{keys}---\nmerge_method: linear\n"
        "models: [one, base]\nparameters: {weight: 1}\n"
    )
    plan = raymerge.plan(
        place / "r.yaml", engine="local", device="cpu", workers=1, tile_elements=TILE
    )
    (node,) = plan.nodes
    assert isinstance(node.inputs[0], Merged)
    settings = run_settings(plan, place.path)
    stages = tuple(map(settings.under, settings.stages))
    shop = Workshop(load_kernels("cpu"), stop or Event(), stages, settings.budget)
    inside = settings.budget.inside(node, node.inputs[0].node)
    return Readers(settings.sources, shop).filler(node.inputs[0], inside)


def filled(filler: Filler, first: int, stop: int) -> Bytes:
    buffer = np.full(4 * (stop - first), 0xAA, np.uint8)
    filler.fill(buffer, 4 * first)
    return buffer


def requests(kind: str) -> Iterator[tuple[int, int]]:
    """Half-open ranges of elements."""
    aligned = [0, 256, 512, 1280, 1536, 2560, 4096, 4864, ELEMENTS]
    if kind == "forward":
        yield from itertools.pairwise(aligned)
    elif kind == "backward":
        yield from reversed(list(itertools.pairwise(aligned)))
    elif kind == "ahead and back":
        for first in (2560, 0, 4096, 1280, 512, 2560):
            yield first, min(first + 768, ELEMENTS)
    elif kind == "rows of 40":
        for first in range(0, ELEMENTS, 40):
            yield first, first + 40
    else:
        generator = np.random.default_rng(0)
        for _ in range(60):
            first, stop = sorted(generator.integers(0, ELEMENTS + 1, 2))
            yield int(first), int(stop)


@EACH_STAGE
@pytest.mark.parametrize(
    "kind", ["forward", "backward", "ahead and back", "rows of 40", "anything"]
)
def test_any_range_holds_the_bytes_of_the_whole(models: Place, method: str, kind: str) -> None:
    whole = filled(result(models, method), 0, ELEMENTS)
    assert len(np.unique(whole.view(np.float32))) > 100

    filler = result(models, method)
    for first, stop in requests(kind):
        part = filled(filler, first, stop)
        assert np.array_equal(part, whole[4 * first : 4 * stop]), (first, stop)


@EACH_STAGE
def test_torch_s_kernels_give_the_same(
    models: Place, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = filled(result(models, method), 0, ELEMENTS)
    monkeypatch.setattr(cpu, "CpuKernels", lambda: TorchKernels("cpu"))
    assert np.array_equal(filled(result(models, method), 0, ELEMENTS), expected)


def test_reductions_are_done_once(models: Place) -> None:
    filler = result(models, "slerp")
    size = 2 * 4 * ELEMENTS
    buffer = np.empty(4 * ELEMENTS, np.uint8)

    # Both inputs fit a cache: held, they are read for the reduction and never again.
    assert [filler.fill(buffer, 0) for _ in range(3)] == [size, 0, 0]


def test_what_is_not_held_is_read_in_every_sweep(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "holds", lambda _self, _node: False)
    filler = result(models, "slerp")
    size = 2 * 4 * ELEMENTS
    buffer = np.empty(4 * ELEMENTS, np.uint8)

    assert [filler.fill(buffer, 0) for _ in range(3)] == [2 * size, size, size]


@pytest.mark.parametrize("method", ["linear", "passthrough", "ties"])
def test_a_nan_is_named_with_its_stage(models: Place, method: str) -> None:
    values = torch.zeros(ELEMENTS)
    values[4321] = torch.nan
    models.model("a", {"w": values})
    filler = result(models, method)
    with pytest.raises(NonFiniteError) as caught:
        filled(filler, 0, ELEMENTS)
    assert str(caught.value) == (
        "stage one: a: w holds a NaN or Inf at element 4321 (model.safetensors). `nan: pass` in "
        "the recipe lets it through."
    )
    assert (caught.value.source, caught.value.tensor) == ("a", "w")


def test_a_stage_may_let_a_nan_pass(models: Place) -> None:
    values = torch.zeros(ELEMENTS)
    values[4321] = torch.nan
    models.model("a", {"w": values})
    filler = result(models, "linear", nan="pass")
    assert np.isnan(filled(filler, 0, ELEMENTS).view(np.float32)).sum() == 1


def test_a_result_beyond_its_stage_s_dtype_is_refused(models: Place) -> None:
    for name in "ab":
        models.model(name, {"w": torch.full((ELEMENTS,), 60000.0)})
    recipe = STAGES["linear"].replace("{weight: 0.3}", "{weight: 1, normalize: false}")
    (models / "r.yaml").write_text(
        f"name: one\n{recipe}\nmodels: [a, b]\ndtype: float16\n---\nmerge_method: linear\n"
        "models: [one, base]\nparameters: {weight: 1}\ndtype: float32\n"
    )
    with pytest.raises(NonFiniteError, match=r"^stage one: w: element 0 of the result is beyond"):
        raymerge.merge(models / "r.yaml", models / "out", engine="local", device="cpu")


def test_integers_that_differ_are_refused_inside_a_stage(models: Place) -> None:
    for number, name in enumerate(("base", "a", "b")):
        models.model(name, {"w": torch.full((ELEMENTS,), number == 2, dtype=torch.int64)})
    filler = result(models, "linear")
    with pytest.raises(SourceError, match=r"differs between a and b"):
        filler.fill(np.empty(8 * ELEMENTS, np.uint8), 0)


def test_a_merge_that_is_told_to_stop_stops_inside_a_stage(models: Place) -> None:
    stop = Event()
    filler = result(models, "slerp", stop=stop)
    stop.set()
    with pytest.raises(StoppedError):
        filled(filler, 0, ELEMENTS)


def test_memory_goes_with_a_result_and_does_not_wait_for_the_collector(models: Place) -> None:
    filler = result(models, "ties")
    filled(filler, 0, ELEMENTS)
    gone = weakref.ref(filler)
    gc.disable()
    try:
        del filler
        assert gone() is None
    finally:
        gc.enable()
