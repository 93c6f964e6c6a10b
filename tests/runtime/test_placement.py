"""Which node gets which workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from raymerge.errors import ClusterError
from raymerge.runtime.placement import Node, check_room, matches, one_worker, spread

GIB = 2**30


def node(name: str, num_cpus: int, num_gpus: int = 0, gib: int = 64) -> Node:
    return Node(id=name, host=name, num_cpus=num_cpus, num_gpus=num_gpus, memory_bytes=gib * GIB)


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([node("a", 8), node("b", 4)], "cpu", None, ["a8", "b4"]),
        ([node("head", 0), node("b", 4)], "cpu", None, ["b4"]),
        ([node("a", 8), node("b", 4)], "cpu", 3, ["a4", "a4", "b4"]),
        ([node("a", 2)], "cpu", 2, ["a1", "a1"]),
        ([node("a", 7)], "cpu", 2, ["a3", "a3"]),
        ([node("a", 8, 2), node("b", 4)], "cuda", None, ["a1", "a1"]),
        ([node("a", 8, 2), node("b", 8, 1)], "cuda", 2, ["a1", "b1"]),
        ([node("a", 8, gib=20), node("b", 8)], "cpu", 3, ["a8", "b4", "b4"]),
        ([node("a", 2), node("b", 1)], "cpu", 99, ["a1", "a1", "b1"]),  # as many as there are
        ([node("a", 8, gib=8)], "cpu", None, []),
        ([], "cpu", None, []),
    ],
)
def test_workers_share_the_nodes(
    nodes: list[Node], device: str, workers: int | None, expected: list[str]
) -> None:
    places = spread(nodes, one_worker(device, memory_bytes=16 * GIB), workers=workers)

    assert [f"{place.node}{place.num_cpus}" for place in places] == expected
    assert {place.num_gpus for place in places} <= {int(device == "cuda")}


def test_a_gpu_is_shared_by_as_many_as_its_parts() -> None:
    one = one_worker("cuda", memory_bytes=None, gpus_each=0.1)
    places = spread([node("a", 99, 1), node("b", 3, 1)], one, workers=None)
    assert [place.node for place in places] == ["a"] * 10 + ["b"] * 3
    assert {place.num_gpus for place in places} == {0.1}


def test_what_is_left_of_a_node_takes_a_replacement_and_no_more() -> None:
    whole = node("a", 8, 2, gib=64)
    one = one_worker("cuda", memory_bytes=16 * GIB)
    first, second = spread([whole], one, workers=None)
    assert spread([whole.without([first, second])], one, workers=None) == ()
    assert spread([whole.without([second])], one, workers=None) == (first,)


@pytest.mark.parametrize(
    ("nodes", "device", "workers"),
    [
        ([], "cpu", None),
        ([node("a", 0)], "cpu", None),
        ([node("a", 8)], "cuda", None),
        ([node("a", 8, 4)], "cuda", 5),
        ([node("a", 8, 4, gib=15)], "cuda", None),
    ],
)
def test_what_fits_nowhere_is_refused(nodes: list[Node], device: str, workers: int | None) -> None:
    one = one_worker(device, memory_bytes=16 * GIB)
    with pytest.raises(ClusterError, match=r"do not fit on the cluster: .* Free now: nothing"):
        check_room(nodes, one, workers=workers, free="nothing")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, True),
        ({"market": "spot"}, True),
        ({"market": "on-demand"}, False),
        ({"market": "!on-demand"}, True),
        ({"market": "in(spot, on-demand)"}, True),
        ({"market": "!in(spot,on-demand)"}, False),
        ({"market": "spot", "zone": "a"}, False),
        ({"zone": "!a"}, True),
        ({"market": "in"}, False),
    ],
)
def test_labels_are_read_as_ray_reads_them(wanted: Mapping[str, str], *, expected: bool) -> None:
    assert matches({"market": "spot"}, wanted) is expected


def test_workers_on_cpus_take_what_those_on_gpus_leave_and_no_more_than_they_ask_for() -> None:
    there = [node("a", 8, 2), node("b", 3, 2), node("c", 4)]
    main = spread(there, one_worker("cuda", memory_bytes=GIB), workers=None)
    left = [one.without(main) for one in there]
    two = replace(one_worker("cpu", memory_bytes=GIB), num_cpus=2)
    beside = spread(left, two, workers=9, alone=False)

    assert {(place.device, place.num_gpus) for place in main} == {("cuda", 1)}
    assert [place.node for place in beside] == ["a"] * 3 + ["c"] * 2
    assert {(place.device, place.num_cpus, place.num_gpus) for place in beside} == {("cpu", 2, 0)}
