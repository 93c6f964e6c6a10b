from __future__ import annotations

import os
from typing import Any

import pytest

from raymerge.machine import (
    MEMORY_SHARE,
    inspect_machine,
    memory_limit_bytes,
    num_cpus,
    num_gpus,
)

GIB = 2**30


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def machine(**given: Any) -> Any:
    asked: dict[str, Any] = {
        "engine": "auto", "address": None, "device": "cpu", "workers": None, "memory_bytes": None,
    }  # fmt: skip
    return inspect_machine(**{**asked, **given})


def test_without_an_address_threads_of_this_process_merge() -> None:
    found = machine()

    assert (found.engine, found.device, found.address) == ("local", "cpu", None)
    assert (found.processes, found.threads) == (1, num_cpus())
    assert found.memory_bytes == int(memory_limit_bytes() * MEMORY_SHARE)
    assert "no cluster address" in found.why


def test_an_address_asks_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine(address="10.0.0.1:6379")
    assert (found.engine, found.address) == ("ray", "10.0.0.1:6379")
    assert "10.0.0.1:6379" in found.why

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (machine().engine, machine().address) == ("ray", "auto")
    assert machine(engine="local").address is None


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_engine_asked_for_is_taken(engine: str) -> None:
    found = machine(engine=engine)
    assert (found.engine, found.why) == (engine, "as asked")


@pytest.mark.parametrize(
    ("engine", "workers", "processes", "threads"),
    [
        ("local", 3, 1, 3),
        ("local", None, 1, num_cpus()),
        ("ray", None, None, num_cpus()),
        ("ray", 2, 2, max(1, num_cpus() // 2)),
        ("ray", 999, 999, 1),
    ],
)
def test_workers_are_threads_here_and_processes_of_ray(
    engine: str, workers: int | None, processes: int | None, threads: int
) -> None:
    found = machine(engine=engine, workers=workers)
    assert (found.processes, found.threads) == (processes, threads)


def test_the_budget_is_the_one_given_or_a_worker_s_share() -> None:
    whole = int(memory_limit_bytes() * MEMORY_SHARE)

    assert machine(memory_bytes=5 * GIB).memory_bytes == 5 * GIB
    assert machine(engine="ray", workers=4).memory_bytes == whole // 4
    assert machine(engine="local", workers=4).memory_bytes == whole


def test_the_memory_there_is_is_at_most_the_machine_s() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**26 < memory_limit_bytes() <= physical


def test_cpus_are_those_this_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    assert num_cpus() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert num_gpus() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert num_gpus() == 0
    assert machine(device="auto").device == "cpu"
