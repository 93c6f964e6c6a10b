from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

import raymerge
from raymerge.errors import SourceError
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.runtime.settings import Progress
from raymerge.runtime.stopping import StoppedError
from raymerge.runtime.unit import Worker
from tests.conftest import METHOD_KNOBS, Place, run_settings


def planned(place: Place, method: str = "ties") -> Plan:
    plan = raymerge.plan(
        place.any_recipe(method), engine="local", device="cpu", workers=1, tile_elements=256
    )
    assert len(plan.shards) == 1
    assert len(plan.units) > 3
    return plan


@pytest.fixture(autouse=True)
def models(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 3)
    place.llamas()


@pytest.fixture
def plan(place: Place) -> Plan:
    return planned(place)


def worker(plan: Plan, folder: Path, stop: Event | None = None) -> Worker:
    return Worker(run_settings(plan, folder), stop=stop or Event())


def merge_all(worker: Worker, plan: Plan) -> None:
    for unit in plan.units:
        worker.merge(unit)


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_units_write_the_same_bytes_in_any_order_twice_and_at_once(
    place: Place, method: str
) -> None:
    plan = planned(place, method)
    one, other = worker(plan, place / "one"), worker(plan, place / "other")
    receipts = [one.merge(unit) for unit in plan.units]
    twice = [other.merge(unit) for unit in reversed(plan.units)]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(other.merge, plan.units))

    assert receipts == at_once == list(reversed(twice))
    shard = plan.shards[0]
    header = len(shard.header)
    written = [(place / name / shard.name).read_bytes()[header:] for name in ("one", "other")]
    assert written[0] == written[1]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_unit_writes_its_range_and_nothing_beside_it(place: Place, plan: Plan) -> None:
    folder, shard = place / "shards", plan.shards[0]
    folder.mkdir()
    (folder / shard.name).write_bytes(b"\xaa" * shard.nbytes)
    unit = plan.units[2]
    receipt = worker(plan, folder).merge(unit)

    content = (folder / shard.name).read_bytes()
    assert content[: unit.start] == b"\xaa" * unit.start
    assert content[unit.stop :] == b"\xaa" * (shard.nbytes - unit.stop)
    found = [sha256(content[node.slot.start : node.slot.stop]) for node in unit.nodes]
    assert [tensor.sha256 for tensor in receipt.tensors] == found
    assert (receipt.unit, receipt.shard, receipt.shard_sha256) == (unit.number, shard.name, None)
    assert (receipt.start, receipt.stop) == (unit.start, unit.stop)


def test_the_first_unit_s_receipt_vouches_for_the_header_too(place: Place, plan: Plan) -> None:
    folder, shard, unit = place / "shards", plan.shards[0], plan.units[0]
    folder.mkdir()
    (folder / shard.name).write_bytes(shard.header + b"\xaa" * (shard.nbytes - len(shard.header)))
    receipt = worker(plan, folder).merge(unit)

    content = (folder / shard.name).read_bytes()
    assert (receipt.start, unit.nodes[0].slot.start) == (0, len(shard.header))
    assert content.startswith(shard.header)
    assert receipt.head_sha256 == sha256(shard.header)


def test_units_and_settings_travel(place: Place, plan: Plan) -> None:
    settings, units = pickle.loads(pickle.dumps((run_settings(plan, place / "there"), plan.units)))
    here = worker(plan, place / "here")
    there = Worker(settings, stop=Event())

    assert [there.merge(unit) for unit in units] == [here.merge(unit) for unit in plan.units]


def test_progress_adds_up_to_what_was_moved(place: Place) -> None:
    plan = planned(place, "task_arithmetic")
    heard: list[Progress] = []
    listening = Worker(run_settings(plan, place / "out"), stop=Event(), on_progress=heard.append)
    merge_all(listening, plan)

    assert sum(each.read_bytes for each in heard) == sum(unit.read_bytes for unit in plan.units)
    assert sum(each.written_bytes for each in heard) == sum(n.slot.nbytes for n in plan.nodes)


def test_a_stopped_worker_writes_no_receipt(place: Place, plan: Plan) -> None:
    stop = Event()
    stop.set()

    with pytest.raises(StoppedError):
        worker(plan, place / "out", stop).merge(plan.units[0])


def test_a_source_that_changed_since_the_plan_is_refused(place: Place, plan: Plan) -> None:
    early = worker(plan, place / "out")
    merge_all(early, plan)
    early.check_sources()
    shard = min((place / "a").glob("model-*"))
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content)

    # What is open is the old file still; what is opened anew is not the planned one.
    early.check_sources()
    with pytest.raises(SourceError, match="changed since it was planned"):
        merge_all(worker(plan, place / "out"), plan)
    early.close()


def test_a_missing_shard_of_a_source_is_named(place: Place, plan: Plan) -> None:
    shard = min((place / "b").glob("model-*"))
    shard.unlink()

    with pytest.raises(SourceError, match="cannot be read") as caught:
        merge_all(worker(plan, place / "out"), plan)
    assert (caught.value.source, caught.value.file) == ("b", shard.name)


def test_reading_ahead_changes_nothing(place: Place, plan: Plan) -> None:
    eager, plain = worker(plan, place / "eager"), worker(plan, place / "plain")
    for unit in plan.units:
        eager.will_need(unit)

    assert [eager.merge(u) for u in plan.units] == [plain.merge(u) for u in plan.units]
