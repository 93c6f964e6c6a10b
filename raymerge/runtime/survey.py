"""Fix the thresholds of a trim over the whole model, before anything is merged.

Three sweeps over the surveyed tensors: upper bits, lower bits, and each unit's ties. What travels
is a histogram per unit and source; the thresholds are kept beside the receipts, so that a resumed
run does not survey again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, kept_count, threshold
from raymerge.methods.rules import KeepLargest
from raymerge.plan.build import Plan
from raymerge.plan.graph import DeltaStep, Unit
from raymerge.runtime.destination import Figures
from raymerge.runtime.engine import Call, Engine
from raymerge.runtime.events import OnEvent, nobody, phase

SURVEY_NAME = "survey.json"


def surveyed_units(
    plan: Plan, engine: Engine, figures: Figures, on_event: OnEvent = nobody
) -> tuple[Unit, ...]:
    """The plan's units with the model's thresholds in them; events tell of the sweeps."""
    # Ties are counted per unit: figures of units that were cut otherwise are of no use.
    ranges = [[unit.shard, unit.start, unit.stop] for unit in plan.units]
    kept = json.loads(figures.read_figures(SURVEY_NAME) or b"{}")
    if kept.get("units") == ranges:
        thresholds = tuple(Threshold(**fields) for fields in kept["thresholds"])
        ties = {int(number): found for number, found in kept["ties"].items()}
    else:
        thresholds, ties = _survey(plan, engine, on_event)
        kept = {
            "units": ranges,
            "thresholds": [asdict(found) for found in thresholds],
            "ties": ties,
        }
        figures.keep_figures(SURVEY_NAME, json.dumps(kept).encode())
    return _with_figures(plan.units, thresholds, ties)


def _survey(
    plan: Plan, engine: Engine, on_event: OnEvent
) -> tuple[tuple[Threshold, ...], dict[int, list[int]]]:
    units = [unit for unit in plan.units if any(map(_is_surveyed, unit.nodes))]
    nodes = [node for unit in units for node in unit.nodes if _is_surveyed(node)]
    step = nodes[0].step
    assert isinstance(step, DeltaStep)
    rule = step.rule
    assert isinstance(rule.keep, KeepLargest)
    total = sum(node.inputs[0].num_elements for node in nodes)
    wanted = [kept_count(density, total) for density in rule.keep.density]

    def run(call: Call, *args: Any) -> Any:
        with phase(on_event, f"survey {call}"):
            yield from engine.run(call, units, *args, before=_nothing)

    high = sum(counts for _, counts in run("count_high"))
    bins = [high_bin(row, k) if k else -1 for row, k in zip(high, wanted, strict=True)]
    low = sum(counts for _, counts in run("count_low", bins))
    thresholds = tuple(
        (threshold(row, bin_, k) or NOTHING) if k else NOTHING
        for row, bin_, k in zip(low, bins, wanted, strict=True)
    )
    ties = {unit.number: counts for unit, counts in run("count_ties", thresholds)}
    return thresholds, ties


def _with_figures(
    units: Sequence[Unit], thresholds: tuple[Threshold, ...], ties: dict[int, list[int]]
) -> tuple[Unit, ...]:
    before = np.zeros(len(thresholds), np.int64)
    figured = []
    for unit in units:
        counted = ties.get(unit.number)
        if counted is None:
            figured.append(unit)
            continue
        ties_before = tuple(int(count) for count in before)
        figured.append(replace(unit, thresholds=thresholds, ties_before=ties_before))
        before += counted
    return tuple(figured)


def _is_surveyed(node: Any) -> bool:
    return isinstance(node.step, DeltaStep) and node.step.surveyed


def _nothing(_unit: Unit) -> None:
    """A survey writes nothing, so nothing has to be prepared."""
