"""The run's ledger says of every tensor and unit what the plan said and what the output holds."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import dataset, parquet

import raymerge
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.plan.graph import CopyStep
from raymerge.runtime import ledger as tables
from raymerge.runtime.ledger import LEDGER_NAMES, TENSORS_NAME, UNITS_NAME
from tests.checkpoints import llama_config
from tests.conftest import METHOD_KNOBS, WITHOUT_BASE, Place, read_tensors, shard_hashes
from tests.e2e.test_adapters import adapters_for, prepare
from tests.e2e.test_fp8 import CONFIG, encoded
from tests.e2e.test_stages import fused, stage

Row = dict[str, Any]
OPTIONS: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 2, "shard_bytes": 8000}
NORM = "model.norm.weight"
UP = "model.layers.0.mlp.up_proj.weight"


def rows(out: Path, name: str) -> list[Row]:
    found: list[Row] = parquet.read_table(out / name).to_pylist()
    return found


def merged(recipe: Path, out: Path, **options: Any) -> tuple[Plan, list[Row], list[Row]]:
    """A merge: its plan, and the rows of its tensors and units."""
    call = {**OPTIONS, **options}
    plan = raymerge.plan(recipe, **call)
    result = raymerge.merge(recipe, out, **call)
    assert result.digest == plan.digest
    assert result.bytes_read == plan.bytes_read
    assert raymerge.verify(out).ok
    return plan, rows(out, TENSORS_NAME), rows(out, UNITS_NAME)


def plain(place: Place, method: str) -> Path:
    place.llamas()
    return place.any_recipe(method, keep=["*norm.weight"])


def adapted(place: Place) -> Path:
    prepare(place)
    return adapters_for(place, place.any_recipe("ties"), alone=False)


def coded(place: Place) -> Path:
    base = {name: tensor.bfloat16() for name, tensor in place.llamas().items()}
    stored, _ = encoded(base, block=8)
    place.model("a", stored, config={**llama_config(base), **CONFIG})
    return place.any_recipe("linear")


def staged(place: Place) -> Path:
    place.llamas(3)
    return fused(
        place,
        [
            stage("slerp", "a", name="one", base="base", t=0.3),
            stage("ties", "one", "c", base="base", weight=0.6, density=0.4),
        ],
    )


CASES: dict[str, Callable[[Place], Path]] = {
    **{method: partial(plain, method=method) for method in METHOD_KNOBS},
    "adapters": adapted,
    "FP8": coded,
    "stages": staged,
}


@pytest.mark.parametrize("case", CASES)
def test_rows_of_tensors_are_what_was_planned_and_what_is_there(place: Place, case: str) -> None:
    recipe = CASES[case](place)
    plan, tensors, _ = merged(recipe, place / "out")
    swept = sum(row["read_bytes"] for row in tensors)
    twins = sum(a.read_bytes + b.read_bytes for node in plan.nodes for a, b in node.twins)

    assert [row["name"] for row in tensors] == [node.slot.name for node in plan.nodes]
    assert {row["name"] for row in tensors} == set(read_tensors(place / "out"))
    assert swept + twins == plan.bytes_read
    for row, node in zip(tensors, plan.nodes, strict=True):
        slot, step = node.slot, node.step
        assert address(row) == (slot.dtype, list(slot.shape), slot.start, slot.stop, slot.nbytes)
        stored = (place / "out" / row["shard"]).read_bytes()[row["start"] : row["stop"]]
        assert row["sha256"] == hashlib.sha256(stored).hexdigest()
        assert row["digest"] == plan.digest
        assert row["seconds"] > 0
        assert row["norms"] is row["cosines"] is None
        assert row["sources"] == [f"{plan.label(one)}:{one.name}" for one in node.inputs]
        knobs = {} if isinstance(step, CopyStep) else dict(step.knobs)
        assert json.loads(row["knobs"]) == json.loads(json.dumps(knobs, default=list))
        assert row["method"] == (step.reason if isinstance(step, CopyStep) else step.method)


def address(row: Row) -> tuple[Any, ...]:
    return row["dtype"], row["shape"], row["start"], row["stop"], row["bytes"]


def test_sources_stand_in_recipe_order_behind_their_base(place: Place) -> None:
    place.llamas()
    models = {"b": {"weight": 0.25}, "a": {"weight": 0.5}}
    recipe = place.recipe("ties", models, base="base", parameters={"density": 0.4})
    _, tensors, _ = merged(recipe, place / "out")
    row = next(row for row in tensors if row["name"] == UP)

    assert row["sources"] == [f"base:{UP}", f"b:{UP}", f"a:{UP}"]
    assert json.loads(row["knobs"])["weight"] == [0.25, 0.5]
    assert json.loads(row["knobs"])["density"] == [0.4, 0.4]


def test_copies_say_why_and_stages_by_which_name(place: Place) -> None:
    place.llamas(3)
    place.model("a", {**read_tensors(place / "a"), "steps": torch.tensor([3, 4])})
    _, tensors, _ = merged(
        place.recipe("passthrough", ["a"], keep=["*norm.weight"]), place / "copies"
    )
    reasons = {row["name"]: (row["method"], row["knobs"]) for row in tensors}
    _, tensors, _ = merged(staged(place), place / "staged")
    sources = {row["name"]: row["sources"] for row in tensors}

    assert reasons[NORM] == ("keep", "{}")
    assert reasons[UP] == ("passthrough", "{}")
    assert reasons["steps"] == ("not a floating-point tensor", "{}")
    assert sources[UP] == [f"base:{UP}", f"one:{UP}", f"c:{UP}"]


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_rows_of_units_cover_the_shards(
    place: Place, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 3)
    place.llamas(layers=4)
    began = datetime.now(UTC)
    plan, tensors, units = merged(place.any_recipe(method), place / "out")
    shards = itertools.groupby(units, key=lambda row: row["shard"])
    covered = {shard: [(row["start"], row["stop"]) for row in group] for shard, group in shards}

    assert len(units) == len(plan.units) > len(covered) > 1
    for shard, spans in covered.items():
        edges = [edge for span in spans for edge in span]
        assert edges[0] == 0
        assert edges[-1] == (place / "out" / shard).stat().st_size
        assert edges[1:-1:2] == edges[2::2]
    for row in units:
        own = [tensor for tensor in tensors if tensor["unit"] == row["unit"]]
        assert len(own) == row["tensors"]
        assert {tensor["shard"] for tensor in own} == {row["shard"]}
        assert {tensor["worker"] for tensor in own} == {row["worker"]}
        assert all(row["start"] <= t["start"] <= t["stop"] <= row["stop"] for t in own)
        assert row["bytes"] == row["stop"] - row["start"]
        assert sum(tensor["seconds"] for tensor in own) <= row["seconds"]
        assert began - timedelta(seconds=1) <= row["began"] <= datetime.now(UTC)
        assert row["resumed"] is False
        assert row["digest"] == plan.digest
    assert {row["worker"] for row in units} == {f"{socket.gethostname()}:{os.getpid()}"}


@pytest.mark.parametrize("method", METHOD_KNOBS)
def test_stats_are_norms_and_cosines_and_change_no_byte(place: Place, method: str) -> None:
    recipe = plain(place, method)
    without, *_ = merged(recipe, place / "without")
    plan, tensors, _ = merged(recipe, place / "out", stats=True)
    merges = [node for node in plan.nodes if not isinstance(node.step, CopyStep)]
    models = {name: read_tensors(place / name) for name in ("base", "a", "b")}

    assert plan.digest == without.digest
    assert shard_hashes(place / "out") == shard_hashes(place / "without")
    assert [row["name"] for row in tensors if row["norms"]] == [n.slot.name for n in merges]
    for node, row in zip(plan.nodes, tensors, strict=True):
        if not isinstance(node.step, CopyStep):
            inputs = [models[plan.label(one)][one.name].float().flatten() for one in node.inputs]
            relative = method not in {*WITHOUT_BASE, "slerp"}
            check_stats(row, [x - inputs[0] for x in inputs[1:]] if relative else inputs)


@pytest.mark.parametrize("tile_elements", [256, None])
@pytest.mark.parametrize("case", ["adapters", "FP8", "stages"])
def test_stats_are_taken_of_what_is_worked_out(
    place: Place, case: str, tile_elements: int | None
) -> None:
    recipe = CASES[case](place)
    merged(recipe, place / "without")
    plan, tensors, _ = merged(recipe, place / "out", stats=True, tile_elements=tile_elements)

    assert shard_hashes(place / "out") == shard_hashes(place / "without")
    for node, row in zip(plan.nodes, tensors, strict=True):
        if not isinstance(node.step, CopyStep):
            vectors = len(node.inputs) - node.step.relative
            assert len(row["norms"]) == vectors
            assert len(row["cosines"]) == vectors * (vectors - 1) // 2
            assert min(row["norms"]) >= 0


def check_stats(row: Row, vectors: list[torch.Tensor]) -> None:
    exact = [vector.double() for vector in vectors]
    norms = [float(vector.norm()) for vector in exact]
    cosines = [
        float(one @ other) / (one_norm * other_norm) if one_norm and other_norm else None
        for (one, one_norm), (other, other_norm) in itertools.combinations(
            zip(exact, norms, strict=True), 2
        )
    ]
    assert row["norms"] == pytest.approx(norms, rel=1e-12)
    assert [each is None for each in row["cosines"]] == [each is None for each in cosines]
    known = [each for each in cosines if each is not None]
    assert [each for each in row["cosines"] if each is not None] == pytest.approx(known, abs=1e-12)


def test_a_vector_without_length_has_no_cosine(place: Place) -> None:
    place.llamas()
    place.model("b", read_tensors(place / "base"))
    _, tensors, _ = merged(place.any_recipe("task_arithmetic"), place / "out", stats=True)

    assert all(row["norms"][0] > row["norms"][1] == 0 for row in tensors)
    assert all(row["cosines"] == [None] for row in tensors)


@pytest.mark.parametrize(
    ("method", "own"), [("linear", True), ("ties", True), ("slerp", False), ("sce", True)]
)
def test_the_plan_shows_the_pass_that_stats_take(place: Place, method: str, *, own: bool) -> None:
    recipe = plain(place, method)
    machine = ["--engine", "local", "--workers", 1, "--memory", "1GiB"]
    less = place.run("plan", recipe, "--json", *machine).json
    more = place.run("plan", recipe, "--json", "--stats", *machine).json
    text = place.run("plan", recipe, "--stats", *machine).out
    graph = place.run("plan", recipe, "--stats", *machine, "--graph", UP).out
    num_merged = sum(tensor["name"].count("norm") == 0 for tensor in more["tensors"])

    assert less["stats"] == {"tensors": 0, "passes": 0}
    assert more["stats"] == {"tensors": num_merged, "passes": num_merged * own}
    assert f"norms and cosines of {num_merged} tensors, {num_merged * own} of them by" in text
    assert ("norms and cosines for the ledger" in graph) == own
    assert less["digest"] == more["digest"]
    # All of these tensors fit: what is held pays no read.
    assert less["totals"] == more["totals"]


def test_the_record_leads_to_the_ledger_and_another_merge_leaves_it(place: Place) -> None:
    place.llamas()
    merged(place.any_recipe("linear"), place / "first")
    recipe = place.recipe("ties", {"first": {"weight": 1}, "b": {"weight": 1}}, base="base")
    plan, tensors, units = merged(recipe, place / "second")
    record = json.loads((place / "second" / "raymerge.json").read_text())

    assert record["ledger"] == LEDGER_NAMES == {"tensors": TENSORS_NAME, "units": UNITS_NAME}
    assert set(record["ledger"].values()) < {path.name for path in (place / "second").iterdir()}
    assert {row["digest"] for row in (*tensors, *units)} == {plan.digest}
    # Kept and copied files are those of the base; with the merge as the donor none of its ledger.
    copy = place.recipe("passthrough", ["first"], name="copy.yaml")
    plan, tensors, _ = merged(copy, place / "third")
    assert {row["digest"] for row in tensors} == {plan.digest}


def test_ledgers_of_several_merges_are_one_table(place: Place) -> None:
    place.llamas()
    outs = [place / name for name in ("one", "two", "three")]
    for out, method in zip(outs, ("linear", "slerp", "ties"), strict=True):
        merged(place.any_recipe(method), out, stats=method == "ties")
    for name in LEDGER_NAMES.values():
        together = dataset.dataset([str(out / name) for out in outs])
        counted = together.to_table().group_by("digest").aggregate([([], "count_all")])
        each = sorted(len(rows(out, name)) for out in outs)
        assert sorted(counted["count_all"].to_pylist()) == each
    tensors = dataset.dataset([str(out / TENSORS_NAME) for out in outs])
    found = tensors.to_table(filter=dataset.field("method") == "slerp").num_rows
    assert found == len(rows(outs[1], TENSORS_NAME))


def test_the_columns_are_those_documented(place: Place) -> None:
    place.llamas()
    merged(place.any_recipe("linear"), place / "out")
    sections = (inspect.getdoc(tables) or "").split("\n\n")[1:]
    for name, section in zip(LEDGER_NAMES.values(), sections, strict=True):
        first, *lines = [line for line in section.splitlines() if line[0] != " "]
        documented = [column for line in lines for column in line.partition("  ")[0].split(", ")]
        assert first.startswith(name)
        assert documented == parquet.read_schema(place / "out" / name).names


def test_knobs_are_json_of_any_recipe(place: Place) -> None:
    place.llamas(layers=2)
    document = yaml.safe_load(place.any_recipe("ties").read_text())
    document["parameters"]["density"] = [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}]
    recipe = place / "conditions.yaml"
    recipe.write_text(yaml.safe_dump(document))
    _, tensors, _ = merged(recipe, place / "out")
    density = {row["name"]: json.loads(row["knobs"])["density"] for row in tensors}

    assert density[UP] == [0.2, 0.2]
    assert density["model.layers.1.mlp.up_proj.weight"] == [0.8, 0.8]
    assert density["model.layers.0.self_attn.q_proj.weight"] == [0.5, 0.5]
