"""What units ask for adds up to what the plan says."""

from __future__ import annotations

from typing import Any

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.plan.build import Plan
from raymerge.plan.ranges import WINDOW_BYTES
from raymerge.plan.units import dispatch_order
from raymerge.runtime.simulation.demands import Demand, family, rounds, total
from raymerge.runtime.simulation.fleet import CORE_GBPS, GB, Fleet
from tests.plans import DOWN, NORM, UP, catalog, plan, recipe

LARGE = WINDOW_BYTES
"""Elements of a tensor of which each source has twice what is fetched ahead."""
TENSORS = {
    UP: (DType.BF16, (1024, LARGE // 1024)),
    NORM: (DType.BF16, (1024,)),
    DOWN: (DType.BF16, (LARGE // 1024, 1024)),
}
RATES = dict.fromkeys(CORE_GBPS, 2.0)


def fleet(cpu_workers: int = 0) -> Fleet:
    """GPUs that take in 2 GB/s, and beside them threads that take in a quarter."""
    return Fleet(
        nodes=1,
        gpus_per_node=1,
        cpus_per_node=8,
        threads=2,
        read_gbps=1,
        write_gbps=1,
        merge_gbps=RATES,
        cpu_workers=cpu_workers,
        cpu_merge_gbps=dict.fromkeys(CORE_GBPS, 0.5),
    )


def planned(method: str, *, afar: bool = True, **top: Any) -> Plan:
    base = None if method == "linear" else "base"
    labels = ["a", "b", *([base] if base else [])]
    merge = recipe(method, "a", "b", base=base, **top)
    return plan(
        merge,
        [catalog(label, TENSORS) for label in labels],
        whole_shards=afar,
        uploads=afar,
        remote=afar,
        hold=False,
        shard_bytes=2**30,
    )


@pytest.mark.parametrize("afar", [True, False])
@pytest.mark.parametrize(
    ("method", "top"),
    [
        ("linear", {}),
        ("ties", {"parameters": {"density": 0.2}}),
        ("ties", {"parameters": {"density": 0.2}, "trim": "model"}),
        ("dare_ties", {"parameters": {"density": 0.5}}),
    ],
)
def test_all_bytes_of_the_plan_are_asked_for(
    method: str, top: dict[str, Any], *, afar: bool
) -> None:
    merge = planned(method, afar=afar, **top)
    played = list(rounds(merge, fleet()))
    asked = total(demand for one in played for work in one.works for demand in work.demands)

    assert asked.read_bytes == pytest.approx(merge.bytes_read, rel=1e-6)
    assert asked.write_bytes == sum(node.slot.nbytes for node in merge.nodes)
    calls = ["count_high", "count_low", "count_ties"] if merge.surveyed else []
    assert [one.call for one in played] == [*calls, "merge"]
    order = [unit.number for unit in dispatch_order(merge.units)]
    assert [work.number for work in played[-1].works] == order


def test_a_sweep_that_reads_stands_apart_from_one_that_writes() -> None:
    merge = planned("ties", parameters={"density": 0.2})
    (work,) = next(iter(rounds(merge, fleet()))).works
    sweep_s = 3 * 2 * LARGE / (2 * GB)
    nbytes = 2 * LARGE

    # Of the first and the last tensor; the small one between them flows with the first's last.
    assert [demand.read_bytes > 0 for demand in work.demands] == [True, True, True, False]
    assert [demand.write_bytes > 0 for demand in work.demands] == [False, True, False, True]
    assert work.demands[0] == pytest.approx(Demand(3 * nbytes, sweep_s, 0))
    assert work.demands[3] == pytest.approx(Demand(0, sweep_s, nbytes))


def test_one_sweep_reads_merges_and_writes_at_once() -> None:
    (work,) = next(iter(rounds(planned("linear"), fleet()))).works
    assert len(work.demands) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("linear", "span"),
        ("ties", "delta"),
        ("breadcrumbs", "delta"),
        ("dare_ties", "drawn"),
        ("della", "drawn"),
        ("ram", "free"),
    ],
)
def test_every_method_has_its_family(method: str, expected: str) -> None:
    density = {"density": 0.5} if expected in {"delta", "drawn"} else {}
    more = {"epsilon": 0.1} if method == "della" else {}
    top: dict[str, Any] = {"parameters": {**density, **more}}
    if method == "ram":
        merge = recipe(method, "a", "b", base="base")
        merged = plan(merge, [catalog(label, TENSORS) for label in ("a", "b", "base")])
    else:
        merged = planned(method, **top)
    assert {family(node.step) for node in merged.nodes} == {expected}


def test_what_is_kept_is_copied() -> None:
    merge = planned("linear", keep=["*norm*"])
    assert {node.slot.name: family(node.step) for node in merge.nodes}[NORM] == "copy"


def test_beside_gpus_the_same_takes_cpus_longer() -> None:
    (alone,) = next(iter(rounds(planned("ties", parameters={"density": 0.2}), fleet()))).works
    assert (alone.beside, alone.bound) == ((), False)
    (work,) = next(iter(rounds(planned("ties", parameters={"density": 0.2}), fleet(1)))).works
    assert work.demands == alone.demands
    slower = [one._replace(merge_s=4 * one.merge_s) for one in work.demands]
    assert [tuple(one) for one in work.beside] == [pytest.approx(tuple(one)) for one in slower]


@pytest.mark.parametrize(
    ("method", "top", "expected"),
    [
        ("ties", {"parameters": {"density": 0.2}}, False),
        ("sce", {}, True),
        ("sce", {"keep": ["*"]}, False),
    ],
)
def test_units_of_free_methods_are_bound_to_gpus(
    method: str, top: dict[str, Any], *, expected: bool
) -> None:
    merge = planned(method, **top)
    assert {work.bound for one in rounds(merge, fleet(1)) for work in one.works} == {expected}
