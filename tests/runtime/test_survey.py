from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

import raymerge
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime.engine import Call, WorkUnit
from raymerge.runtime.survey import surveyed_units
from raymerge.runtime.unit import Worker
from tests.checkpoints import fine_tune, tiny_llama_tensors
from tests.conftest import Place, run_settings
from tests.figures import FolderFigures


class CountingEngine:
    """Runs units in this thread, last first, and keeps what it was asked."""

    name = "counting"
    workers = 1
    lost_workers = redone_units = 0

    def __init__(self, plan: Plan) -> None:
        self._worker = Worker(run_settings(plan, Path("/nowhere")), stop=Event())
        self.calls: list[Call] = []

    def run(
        self,
        call: Call,
        units: Sequence[WorkUnit],
        *args: Any,
        before: Callable[[WorkUnit], WorkUnit | None],
        meanwhile: Callable[[], None] = lambda: None,  # noqa: ARG002 - nothing takes long here
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """See `Engine.run`."""
        self.calls.append(call)
        for unit in reversed(units):
            before(unit)
            yield unit, getattr(self._worker, call)(unit, *args)

    def close(self) -> None:
        """See `Engine.close`."""


@pytest.fixture
def models(place: Place) -> list[dict[str, torch.Tensor]]:
    """A base and two fine-tunes whose deltas hold many equal magnitudes."""
    base = tiny_llama_tensors(0)
    models = [base, fine_tune(base, 1, 0.0003), fine_tune(base, 2, 0.0003)]
    for name, tensors in zip(("base", "a", "b"), models, strict=True):
        place.model(name, tensors)
    return models


def plan_of(place: Place, density: float | list[float], **options: Any) -> Plan:
    densities = density if isinstance(density, list) else [density] * 2
    own = {name: {"density": value} for name, value in zip("ab", densities, strict=True)}
    top: dict[str, Any] = {"parameters": {"weight": 1.0}, "trim": "model"}
    recipe = place.recipe("ties", own, base="base", **top)
    return raymerge.plan(recipe, engine="local", device="cpu", workers=1, **options)


def survey(plan: Plan, folder: Path) -> tuple[tuple[Unit, ...], list[Call]]:
    folder.mkdir(exist_ok=True)
    engine = CountingEngine(plan)
    return surveyed_units(plan, engine, FolderFigures(folder)), engine.calls


def magnitudes(plan: Plan, models: list[dict[str, torch.Tensor]], source: int) -> Any:
    deltas = [
        (models[source][node.slot.name].float() - models[0][node.slot.name].float()).abs().view(-1)
        for node in plan.nodes
    ]
    return torch.cat(deltas).numpy()


@pytest.mark.parametrize("density", [0.01, 0.3, 0.99])
def test_thresholds_are_those_of_a_sort_of_the_whole_model(
    place: Place, models: list[dict[str, torch.Tensor]], density: float
) -> None:
    plan = plan_of(place, density)
    units, _ = survey(plan, place / "claim")

    for source, found in enumerate(units[0].thresholds, start=1):
        whole = magnitudes(plan, models, source)
        keep = int(density * whole.size)
        lowest = np.sort(whole)[::-1][keep - 1]
        assert np.uint32(found.bits).view(np.float32) == lowest
        assert found.tied == (whole == lowest).sum()
        assert found.kept == keep - (whole > lowest).sum()


def test_figures_do_not_depend_on_how_units_are_cut(
    place: Place, models: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert models
    one, _ = survey(plan_of(place, 0.2), place / "one")
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 2)
    many, _ = survey(plan_of(place, 0.2), place / "many")

    assert len(one) == 1
    assert len(many) > 5
    assert {unit.thresholds for unit in many} == {one[0].thresholds}


def test_ties_before_a_unit_are_those_of_all_units_before_it(
    place: Place, models: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 2)
    plan = plan_of(place, 0.2)
    units, _ = survey(plan, place / "claim")

    for source in (1, 2):
        bits = units[0].thresholds[source - 1].bits
        tied = magnitudes(plan, models, source).view(np.uint32) == bits
        seen = 0
        for unit in units:
            assert unit.ties_before[source - 1] == tied[:seen].sum()
            seen += sum(node.inputs[0].num_elements for node in unit.nodes)
        assert tied.sum() > 1


def test_a_survey_is_three_sweeps_and_is_not_done_again(
    place: Place, models: list[dict[str, torch.Tensor]]
) -> None:
    assert models
    plan = plan_of(place, [0.2, 0.6])
    first, calls = survey(plan, place / "claim")
    again, none = survey(plan, place / "claim")

    assert calls == ["count_high", "count_low", "count_ties"]
    assert none == []
    assert first == again
    kept = json.loads((place / "claim" / "survey.json").read_text())
    assert kept.keys() == {"units", "thresholds", "ties"}


def test_densities_of_0_and_1_keep_nothing_and_everything(
    place: Place, models: list[dict[str, torch.Tensor]]
) -> None:
    plan = plan_of(place, [0.0, 1.0])
    (unit,), _ = survey(plan, place / "claim")
    nothing, everything = unit.thresholds

    assert (nothing.kept, nothing.tied) == (0, 0)
    assert nothing.bits > np.float32(np.inf).view(np.uint32)
    smallest = magnitudes(plan, models, 2).min()
    assert np.uint32(everything.bits).view(np.float32) == smallest
    assert everything.kept == everything.tied
