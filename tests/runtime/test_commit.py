from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import raymerge
from raymerge.errors import CommitError, ConflictError, StorageError
from raymerge.plan.build import Plan
from raymerge.runtime.commit import Claim, finished_record
from raymerge.runtime.receipt import Receipt, TensorReceipt
from tests.conftest import Place

INDEX = "model.safetensors.index.json"


@pytest.fixture
def plan(place: Place) -> Plan:
    """A plan of several shards, of one unit each."""
    place.llamas()
    recipe = place.any_recipe("linear")
    return raymerge.plan(recipe, engine="local", device="cpu", workers=1, shard_bytes=4000)


@contextmanager
def claimed(out: Path, digest: str, *, overwrite: bool = False) -> Iterator[Claim]:
    with closing(Claim(out, digest=digest, overwrite=overwrite)) as claim:
        yield claim


def receipts_of(plan: Plan) -> dict[int, Receipt]:
    return {
        unit.number: Receipt(
            unit=unit.number,
            shard=unit.shard,
            start=unit.start,
            stop=unit.stop,
            head_sha256="0" * 64,
            tensors=(TensorReceipt(sha256="1" * 64, seconds=0.5),) * len(unit.nodes),
        )
        for unit in plan.units
    }


def fill(plan: Plan, claim: Claim) -> None:
    for shard in plan.shards:
        (claim.folder / shard.name).write_bytes(b"x" * shard.nbytes)


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


# --- who may write -------------------------------------------------------------------------------


def test_a_claim_says_whose_the_destination_is(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "d1") as claim:
        content = json.loads((tmp_path / "out" / ".raymerge" / "claim.json").read_text())
        assert claim.folder == tmp_path / "out" / ".raymerge" / "d1"
        assert claim.folder.is_dir()
        claim.check()

    assert content.keys() == {"digest", "driver", "host", "pid", "since"}
    assert content["digest"] == "d1"


@pytest.mark.parametrize("digest", ["d1", "d2"])
def test_a_live_claim_is_not_to_be_had(tmp_path: Path, digest: str) -> None:
    with (
        claimed(tmp_path, "d1"),
        pytest.raises(ConflictError, match="is being written by process"),
    ):
        Claim(tmp_path, digest=digest, overwrite=False)


def test_a_dead_claim_is_the_same_plan_s_to_go_on_with(tmp_path: Path) -> None:
    with claimed(tmp_path, "d1"):
        pass
    with pytest.raises(ConflictError, match="unfinished merge of another recipe"):
        Claim(tmp_path, digest="d2", overwrite=False)
    with claimed(tmp_path, "d1") as claim:
        claim.check()


def test_a_claim_that_cannot_be_read_is_someone_s(tmp_path: Path) -> None:
    (tmp_path / ".raymerge").mkdir()
    (tmp_path / ".raymerge" / "claim.json").write_text("{")

    with pytest.raises(ConflictError, match="unfinished"):
        Claim(tmp_path, digest="d1", overwrite=False)
    with claimed(tmp_path, "d1", overwrite=True) as claim:
        claim.check()


@pytest.mark.parametrize("name", [INDEX, "model.safetensors"])
def test_a_checkpoint_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")

    with pytest.raises(ConflictError, match=f"already holds a checkpoint .{name}"):
        Claim(tmp_path, digest="d1", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_overwriting_removes_what_loaders_would_read_and_nothing_else(tmp_path: Path) -> None:
    weights = {"model.safetensors", "model-00002-of-00007.safetensors", "pytorch_model.bin"}
    gone = weights | {INDEX, "raymerge.json", "tokenizer.json", "chat_template.jinja"}
    gone |= {"adapter_config.json", "quant_config.json", "spiece.model", "tekken.json"}
    gone |= {"config.json", "generation_config.json", "video_preprocessor_config.json"}
    stays = {"notes.txt", "eval.json", "LICENSE"}
    for name in gone | stays:
        (tmp_path / name).write_text("{}")

    with claimed(tmp_path, "d1", overwrite=True):
        assert names(tmp_path) == stays | {".raymerge/claim.json"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_config.json", "tokenizer.json"])
def test_what_would_change_how_the_model_loads_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConflictError, match=f"holds a file of another model .{name}"):
        Claim(tmp_path, digest="d1", overwrite=False)


def test_an_overwriting_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def fail(_claim: Claim) -> None:
        raise OSError(5, "cut off")

    with monkeypatch.context() as patched:
        patched.setattr(Claim, "_clear", fail)
        with pytest.raises(StorageError):
            Claim(tmp_path, digest="d1", overwrite=True)
    assert (tmp_path / "tokenizer.json").exists()
    with claimed(tmp_path, "d1"):
        assert names(tmp_path) == {".raymerge/claim.json"}


def test_who_loses_the_claim_knows_before_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(tmp_path, "d1") as old:
        (old.folder / "shard").write_text("x")
        clear, told = Claim._clear, []  # noqa: SLF001 - to see what it finds

        def look(claim: Claim) -> None:
            assert (old.folder / "shard").exists()
            with pytest.raises(ConflictError, match="taken over") as caught:
                old.check()
            told.append(caught)
            clear(claim)

        monkeypatch.setattr(Claim, "_clear", look)
        with claimed(tmp_path, "d2", overwrite=True):
            assert told
            assert not (old.folder / "shard").exists()


def test_a_claim_that_was_taken_over_is_noticed(tmp_path: Path) -> None:
    with claimed(tmp_path, "d1") as old:
        (old.folder / "shard").write_text("half")
        with claimed(tmp_path, "d2", overwrite=True) as new:
            with pytest.raises(ConflictError, match="was taken over by process"):
                old.check()
            new.check()
            assert not old.folder.exists()


def test_what_a_stopped_driver_still_wrote_goes_when_it_closes(tmp_path: Path) -> None:
    old = Claim(tmp_path, digest="d1", overwrite=False)
    with claimed(tmp_path, "d2", overwrite=True) as new:
        old.folder.mkdir()
        (old.folder / "late").write_text("late")
        old.close()
        assert not old.folder.exists()
        new.check()


def test_nor_does_it_stay_where_the_other_has_finished(tmp_path: Path) -> None:
    old = Claim(tmp_path, digest="d1", overwrite=False)
    (tmp_path / ".raymerge" / "claim.json").unlink()
    (old.folder / "late").write_text("late")
    old.close()

    assert not list(tmp_path.iterdir())


def test_a_destination_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Claim(tmp_path / "file", digest="d1", overwrite=False)


# --- receipts ------------------------------------------------------------------------------------


def test_receipts_are_found_again_and_what_is_none_is_not(tmp_path: Path, plan: Plan) -> None:
    first, second, *_ = receipts_of(plan).values()
    with claimed(tmp_path / "out", "d1") as claim:
        claim.keep(first)
        claim.keep(second)
        claim.keep(first)
        (claim.folder / "unit-000099.json").write_text('{"unit": 99}')
        (claim.folder / "unit-000098.json").write_text("{")
    with claimed(tmp_path / "out", "d1") as claim:
        assert claim.receipts() == {first.unit: first, second.unit: second}


def test_shards_moved_by_a_driver_that_died_are_taken_back(tmp_path: Path, plan: Plan) -> None:
    with claimed(tmp_path / "out", "d1") as claim:
        fill(plan, claim)
        for receipt in receipts_of(plan).values():
            claim.keep(receipt)
        moved = claim.folder / plan.shards[0].name
        moved.rename(tmp_path / "out" / moved.name)
    with claimed(tmp_path / "out", "d1") as claim:
        assert claim.receipts() == receipts_of(plan)
        assert (claim.folder / moved.name).exists()
        assert not (tmp_path / "out" / moved.name).exists()


# --- the commit ----------------------------------------------------------------------------------


def test_publishing_leaves_the_checkpoint_and_nothing_else(tmp_path: Path, plan: Plan) -> None:
    files = {"config.json": b"{}", "raymerge.json": b"{}"}
    with claimed(tmp_path / "out", "d1") as claim:
        fill(plan, claim)
        claim.publish(plan, receipts_of(plan), files)

    shards = {shard.name for shard in plan.shards}
    assert names(tmp_path / "out") == shards | files.keys() | {INDEX}
    weight_map = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert set(weight_map.values()) == shards
    assert weight_map.keys() == {node.slot.name for node in plan.nodes}


def test_the_index_is_the_last_to_appear(tmp_path: Path, plan: Plan) -> None:
    with claimed(tmp_path / "out", "d1") as claim:
        fill(plan, claim)
        (tmp_path / "out" / "config.json").mkdir()
        with pytest.raises(StorageError):
            claim.publish(plan, receipts_of(plan), {"config.json": b"{}"})
        assert not (tmp_path / "out" / INDEX).exists()


@pytest.mark.parametrize("lost", [0, -1])
def test_without_a_receipt_for_every_unit_nothing_is_published(
    tmp_path: Path, plan: Plan, lost: int
) -> None:
    receipts = receipts_of(plan)
    number = sorted(receipts)[lost]
    del receipts[number]
    with claimed(tmp_path / "out", "d1") as claim:
        fill(plan, claim)
        with pytest.raises(CommitError, match=f"1 units have no receipt, number {number} first"):
            claim.publish(plan, receipts, {})
    assert not list((tmp_path / "out").glob("model*"))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_length_is_not_published(
    tmp_path: Path, plan: Plan, change: int
) -> None:
    planned = plan.shards[0].nbytes
    with claimed(tmp_path / "out", "d1") as claim:
        fill(plan, claim)
        (claim.folder / plan.shards[0].name).write_bytes(b"x" * (planned + change))
        with pytest.raises(CommitError, match=f"planned {planned} bytes, found {planned + change}"):
            claim.publish(plan, receipts_of(plan), {})
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_driver_that_lost_its_claim_does_not_publish(tmp_path: Path, plan: Plan) -> None:
    with claimed(tmp_path / "out", "d1") as old:
        fill(plan, old)
        with (
            claimed(tmp_path / "out", "d1", overwrite=True),
            pytest.raises(ConflictError, match="nothing was published"),
        ):
            old.publish(plan, receipts_of(plan), {})
    assert not list((tmp_path / "out").glob("model*"))


# --- finished ------------------------------------------------------------------------------------


def finished(out: Path, digest: str = "d1") -> None:
    out.mkdir()
    (out / INDEX).write_text("{}")
    (out / "a.safetensors").write_bytes(b"1234")
    record = {"digest": digest, "shards": [{"name": "a.safetensors", "bytes": 4, "sha256": ""}]}
    (out / "raymerge.json").write_text(json.dumps(record))


def test_a_finished_checkpoint_is_known_by_its_record(tmp_path: Path) -> None:
    finished(tmp_path / "out")

    assert finished_record(tmp_path / "out", "d1") is not None
    assert finished_record(tmp_path / "out", "d2") is None
    assert finished_record(tmp_path / "gone", "d1") is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (INDEX, None),
        ("raymerge.json", None),
        ("raymerge.json", "{"),
        ("raymerge.json", "[]"),
        ("a.safetensors", None),
        ("a.safetensors", "12345"),
    ],
)
def test_what_is_not_whole_is_not_finished(tmp_path: Path, name: str, content: str | None) -> None:
    out = tmp_path / "out"
    finished(out)
    if content is None:
        (out / name).unlink()
    else:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(content)

    assert finished_record(out, "d1") is None


def test_receipts_left_by_a_driver_that_died_tidying_up_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(out)
    (out / ".raymerge" / "d1").mkdir(parents=True)
    (out / ".raymerge" / "d1" / "unit-000000.json").write_text("{}")

    assert finished_record(out, "d1") is not None
    assert not (out / ".raymerge").exists()


# --- giving up -----------------------------------------------------------------------------------


def test_an_abandoned_claim_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "d1") as claim:
        (claim.folder / "shard").write_text("half")
        claim.abandon()
    assert not (tmp_path / "out").exists()

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with claimed(tmp_path / "out", "d1") as claim:
        claim.abandon()
    assert names(tmp_path / "out") == {"notes.txt"}


def test_an_abandoned_claim_leaves_another_driver_s_alone(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out", "d1") as lost,
        claimed(tmp_path / "out", "d2", overwrite=True) as winner,
    ):
        (winner.folder / "shard").write_text("half")
        lost.abandon()
        winner.check()
        assert (winner.folder / "shard").exists()
