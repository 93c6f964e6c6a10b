"""`raymerge simulate` on headers without weights behind them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import raymerge
from bench.models import LlamaShape, make_headers
from bench.tools import METHODS
from raymerge.runtime.simulation.fleet import CORE_GBPS, GB
from tests.conftest import Place

SHAPE = LlamaShape(hidden=4096, layers=16, heads=32, kv_heads=8, intermediate=14_336, vocab=128_256)
"""4.0 G parameters, 8 GB, of which the disk holds the headers."""
CLUSTER = ("--nodes", 2, "--gpus-per-node", 4, "--read-gbps", 10, "--write-gbps", 5)


def recipe_of(place: Place, method: str, shape: LlamaShape = SHAPE) -> Path:
    make_headers(place / "models", shape)
    recipe = place / f"{method}.yaml"
    recipe.write_text(next(m for m in METHODS if m.name == method).recipe(place / "models"))
    return recipe


@pytest.fixture
def ties(place: Place) -> Path:
    return recipe_of(place, "ties")


def test_it_foretells_time_traffic_memory_and_cost(place: Place, ties: Path) -> None:
    done = place.run(
        "simulate", ties, *CLUSTER, "--merge-gbps", 40, "--price-per-hour", 36, "--json"
    )
    found = done.json

    assert (found["workers"], found["fleet"]["threads"]) == (8, 2)
    # Four sources in over two lines of 10 GB/s, and some 3 GB of a device's work for each GPU.
    assert found["bytes_written"] == pytest.approx(SHAPE.num_bytes, rel=1e-3)
    assert found["bytes_read"] == pytest.approx(4 * SHAPE.num_bytes, rel=1e-3)
    assert found["seconds"] >= 4 * SHAPE.num_bytes / (2 * 10 * GB)
    assert found["seconds"] <= 2 * 4 * SHAPE.num_bytes / (2 * 10 * GB)
    assert found["bound_by"] == "reads"
    assert found["cost"] == pytest.approx(2 * 36 * found["seconds"] / 3600, abs=0.01)
    assert len(found["nodes"]) == 2
    assert sum(node["bytes_read"] for node in found["nodes"]) == found["bytes_read"]
    assert found["host_bytes_per_node"] == 4 * found["host_bytes_per_worker"] <= 4 * 64 * 2**30
    assert found["device_bytes"] > 0


def test_it_says_what_its_figures_rest_on(place: Place, ties: Path) -> None:
    text = place.run("simulate", ties, *CLUSTER, "--merge-gbps", "span=40").out
    assert "a node reads 10 and writes 5" in text
    assert "span 40," in text
    assert f"delta {CORE_GBPS['delta']:g} (one core, measured)" in text


def test_workers_on_cpus_help_those_on_gpus(place: Place) -> None:
    """As many threads as GPUs, half as fast: half as much again in a run bound by kernels."""
    # Many units, and none much larger than the others.
    ties = recipe_of(place, "ties", replace(SHAPE, layers=64, vocab=8192))
    common = ("simulate", ties, *CLUSTER, "--merge-gbps", 1, "--storage", "files", "--json")
    alone = place.run(*common).json
    found = place.run(
        *common, "--cpu-workers", 4, "--cpus-per-node", 8, "--cpu-merge-gbps", 0.5
    ).json

    assert (alone["workers"], found["workers"]) == (8, 12)
    assert found["fleet"]["cpu_workers"] == 4
    assert found["fleet"]["cpu_merge_gbps"] == dict.fromkeys(CORE_GBPS, 0.5)
    assert found["bytes_written"] == alone["bytes_written"]
    assert alone["seconds"] / found["seconds"] == pytest.approx(1.5, rel=0.1)
    assert (found["bound_by"], found["bound_share"] <= 1) == ("merges", True)
    assert found["host_bytes_per_node"] == 6 * found["host_bytes_per_worker"]


def test_workers_on_cpus_get_no_unit_of_a_free_method(place: Place) -> None:
    recipe = recipe_of(place, "sce")
    beside = ("--cpu-workers", 2, "--cpus-per-node", 8, "--json")
    alone, found = (
        place.run("simulate", recipe, *CLUSTER, *words).json for words in (("--json",), beside)
    )
    assert found["seconds"] == alone["seconds"]
    assert found["utilisation"] == pytest.approx(0.8 * alone["utilisation"], abs=1e-3)


def test_it_says_how_fast_workers_on_cpus_are_thought_to_be(place: Place, ties: Path) -> None:
    beside = ("--cpu-workers", 2, "--cpus-per-node", 8, "--cpu-merge-gbps", "delta=0.7")
    text = place.run("simulate", ties, *CLUSTER, *beside).out
    assert "10 workers, 2 of them on CPUs" in text
    assert "a thread beside them" in text
    assert "delta 0.7," in text


def test_a_unit_is_a_shard_on_an_object_store_and_smaller_in_files(
    place: Place, ties: Path
) -> None:
    units = {}
    for storage in ("objects", "files"):
        found = place.run("simulate", ties, *CLUSTER, "--storage", storage, "--json").json
        units[storage] = found["units"], found["shards"]
    assert units["objects"][0] == units["objects"][1]
    assert units["files"][0] > units["files"][1]


def test_a_survey_reads_everything_three_times_more(ties: Path) -> None:
    text = ties.read_text().replace("parameters:\n", "parameters:\n", 1)
    whole = ties.with_name("whole.yaml")
    whole.write_text(text + "trim: model\n")
    options = raymerge.SimulateOptions(
        nodes=2, gpus_per_node=0, cpus_per_node=4, read_gbps=10, write_gbps=10
    )
    once, surveyed = (raymerge.simulate(recipe, **options) for recipe in (ties, whole))
    assert (once.workers, once.fleet.threads) == (2, 4)
    assert surveyed.bytes_read == pytest.approx(4 * once.bytes_read, rel=1e-3)
    assert surveyed.seconds > once.seconds


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--merge-gbps", "tensor=1"), "'tensor' is no family: copy, span, delta, drawn, free"),
        (("--merge-gbps", "0"), "0.0 is not in the range x>0"),
        (("--read-gbps", "fast"), "'fast' is not a valid float"),
        (("--memory", "64MiB"), "64.0 MiB"),
        (("--cpu-workers", "5"), "4 GPUs and 8 CPUs take 4; raise --cpus-per-node"),
        (("--cpu-workers", "2", "--cpus-per-node", "5"), "5 CPUs take 0; raise"),
        (("--cpu-workers", "1", "--gpus-per-node", "0"), "--gpus-per-node is 0"),
        (("--cpu-merge-gbps", "1"), "the rate of --cpu-workers, and there are none"),
    ],
)
def test_what_makes_no_sense_is_refused(
    place: Place, ties: Path, option: tuple[str, str], message: str
) -> None:
    done = place.run("simulate", ties, *CLUSTER, *option)
    assert done.rc == 2
    assert message in done.err
