"""An object store as a destination: what is there before, between and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

import pytest

import raymerge
from raymerge.errors import CommitError, ConflictError
from raymerge.plan.build import Plan
from raymerge.runtime import object_destination
from raymerge.runtime.object_claim import CLAIM_NAME, ObjectClaim
from raymerge.runtime.object_destination import ObjectDestination, finished_objects
from raymerge.runtime.receipt import Receipt, TensorReceipt
from raymerge.runtime.record import ShardRecord, run_record
from raymerge.storage.objects import ObjectStore
from raymerge.storage.store import Access
from raymerge.storage.urls import Location, destination
from tests.conftest import Place

INDEX = "model.safetensors.index.json"
_places = count()


@pytest.fixture
def out() -> Location:
    return destination(f"memory://destinations-{next(_places)}/out")


@pytest.fixture
def store(out: Location) -> ObjectStore:
    return ObjectStore(out, Access())


@pytest.fixture
def plan(place: Place, out: Location) -> Plan:
    place.llamas(2)
    recipe = place.recipe("linear", {"a": {"weight": 1.0}, "b": {"weight": 1.0}})
    return raymerge.plan(
        recipe, out=str(out), engine="local", device="cpu", workers=1, shard_bytes=4000
    )


@contextmanager
def claimed(
    out: Location, digest: str, names: list[str] | None = None, *, overwrite: bool = False
) -> Iterator[ObjectDestination]:
    found = ObjectDestination(out, Access(), digest=digest, names=names or [], overwrite=overwrite)
    with closing(found):
        yield found


def fill(plan: Plan, store: ObjectStore) -> dict[int, Receipt]:
    """Every shard as some bytes of its length, and the receipts that a worker would give."""
    receipts = {}
    for unit in plan.units:
        data = bytes([unit.number]) * unit.shard_bytes
        pin = store.put(unit.shard, data)
        receipts[unit.number] = Receipt(
            unit=unit.number,
            shard=unit.shard,
            start=0,
            stop=unit.shard_bytes,
            head_sha256="0" * 64,
            tensors=(TensorReceipt(sha256="1" * 64, seconds=0.1),) * len(unit.nodes),
            shard_sha256=hashlib.sha256(data).hexdigest(),
            stored={"etag": pin.tag},
        )
    return receipts


def record_of(plan: Plan, receipts: dict[int, Receipt]) -> bytes:
    shards = [ShardRecord(one.shard, one.stop, str(one.shard_sha256)) for one in receipts.values()]
    return run_record(plan, shards=shards, kernels="k")


def test_a_unit_is_a_whole_shard(plan: Plan) -> None:
    assert len(plan.units) == len(plan.shards) > 1
    assert all(unit.is_whole_shard for unit in plan.units)


def test_the_index_comes_last_and_nothing_of_the_run_stays(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        for receipt in receipts.values():
            found.keep(receipt)
        assert INDEX not in store.pins()
        found.publish(plan, receipts, {"raymerge.json": record_of(plan, receipts)})
    shards = {shard.name for shard in plan.shards}
    assert set(store.pins()) == {*shards, INDEX, "raymerge.json"}
    assert finished_objects(out, plan.digest, Access()) is not None
    assert finished_objects(out, "another", Access()) is None


def test_receipts_of_an_earlier_run_are_found_and_trusted_by_etag(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        for receipt in receipts.values():
            found.keep(receipt)
        found.keep_figures("survey.json", b"{}")
    store.put(plan.units[0].shard, b"x" * plan.units[0].shard_bytes)
    store.put(f".raymerge/{plan.digest}/unit-000099.json", b"{")

    with claimed(out, plan.digest) as found:
        assert found.receipts() == receipts
        assert found.read_figures("survey.json") == b"{}"
        assert found.read_figures("other.json") is None
        trusted = [found.trusts(unit, receipts[unit.number]) for unit in plan.units]
        assert trusted == [False, *[True] * (len(plan.units) - 1)]


@pytest.mark.parametrize("what", ["gone", "replaced", "longer"])
def test_a_shard_that_is_not_as_it_was_left_is_not_published(
    plan: Plan, out: Location, store: ObjectStore, what: str
) -> None:
    unit = plan.units[-1]
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        if what == "gone":
            store.delete(unit.shard)
        else:
            store.put(unit.shard, b"y" * (unit.shard_bytes + (what == "longer")))
        with pytest.raises(CommitError, match=f"{unit.shard}: planned {unit.shard_bytes} bytes"):
            found.publish(plan, receipts, {})
    assert INDEX not in store.pins()


def test_the_same_bytes_of_another_upload_are_published(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    """As of a copy of a unit that was given up: this store's tags are of uploads."""
    unit = plan.units[-1]
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        tag = store.put(unit.shard, bytes([unit.number]) * unit.shard_bytes).tag
        assert tag != receipts[unit.number].stored["etag"]
        found.publish(plan, receipts, {})
    assert INDEX in store.pins()


def test_a_unit_without_a_receipt_is_not_published(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        del receipts[1]
        with pytest.raises(CommitError, match="1 units have no receipt, number 1 first"):
            found.publish(plan, receipts, {})
    assert INDEX not in store.pins()


def test_what_lies_there_is_not_written_over(out: Location, store: ObjectStore) -> None:
    store.put(INDEX, b"{}")
    with pytest.raises(ConflictError, match=rf"already holds a checkpoint \({INDEX}\)"):
        ObjectDestination(out, Access(), digest="d", names=[], overwrite=False)
    store.delete(INDEX)
    store.put("README.md", b"mine")
    with pytest.raises(ConflictError, match=r"a file of that name \(README.md\)"):
        ObjectDestination(out, Access(), digest="d", names=["README.md"], overwrite=False)
    assert set(store.pins()) == {"README.md"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_checkpoint_that_came_while_we_claimed_is_seen(
    out: Location, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    def late(*arguments: Any, **options: Any) -> ObjectClaim:
        store.put(INDEX, b"{}")
        return ObjectClaim(*arguments, **options)

    monkeypatch.setattr(object_destination, "ObjectClaim", late)
    if not overwrite:
        with pytest.raises(ConflictError, match="already holds a checkpoint"):
            ObjectDestination(out, Access(), digest="d", names=[], overwrite=False)
        assert set(store.pins()) == {INDEX}
        return
    with claimed(out, "d", overwrite=True):
        assert set(store.pins()) == {CLAIM_NAME}


def test_a_commit_that_failed_may_be_taken_up_at_once(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        with pytest.raises(TypeError):
            found.publish(plan, receipts, {"config.json": None})  # type: ignore[dict-item]
    with claimed(out, plan.digest) as found:
        found.publish(plan, receipts, {})
    assert INDEX in store.pins()


def test_overwriting_leaves_nothing_stale(out: Location, store: ObjectStore) -> None:
    stale = ["model-00007-of-00007.safetensors", "tokenizer.json", INDEX, "raymerge.json"]
    others = ["notes.txt", "folder/model.safetensors"]
    for name in (*stale, *others, ".raymerge/old/unit-000001.json", ".raymerge/d/unit-000001.json"):
        store.put(name, b"{}")
    with claimed(out, "d", overwrite=True):
        assert set(store.pins()) == {*others, ".raymerge/d/unit-000001.json", CLAIM_NAME}


def test_overwriting_again_goes_on_with_what_it_has_written(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    shards = [shard.name for shard in plan.shards]
    store.put("pytorch_model.bin", b"x")
    with claimed(out, plan.digest, shards, overwrite=True) as found:
        for receipt in (receipts := fill(plan, store)).values():
            found.keep(receipt)
    with claimed(out, plan.digest, shards, overwrite=True) as found:
        assert all(found.trusts(unit, receipts[unit.number]) for unit in plan.units)


def test_what_a_driver_killed_after_its_commit_has_left_is_tidied_up(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        found.keep(receipts[0])
        left = store.read(CLAIM_NAME)
        found.publish(plan, receipts, {"raymerge.json": record_of(plan, receipts)})
    assert left is not None
    store.put(CLAIM_NAME, left[0])
    store.put(f".raymerge/{plan.digest}/unit-000000.json", receipts[0].as_json())
    assert finished_objects(out, plan.digest, Access()) is not None
    assert not [name for name in store.pins() if name.startswith(".raymerge/")]


def test_two_runs_that_both_believe_they_own_it_publish_once(
    plan: Plan, out: Location, store: ObjectStore
) -> None:
    with claimed(out, plan.digest) as found:
        receipts = fill(plan, store)
        store.put(INDEX, b"another's")
        with pytest.raises(ConflictError, match="was published by another run meanwhile"):
            found.publish(plan, receipts, {})
