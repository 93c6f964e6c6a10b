"""One merge from claim to commit, with engines that do what engines may: any order, death."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import raymerge
from raymerge.errors import ClusterError, CommitError, StorageError
from raymerge.plan import units as unit_sizes
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.engine import Call, WorkUnit
from raymerge.runtime.folder_destination import FolderDestination
from raymerge.runtime.receipt import Receipt
from raymerge.runtime.settings import OnProgress
from raymerge.runtime.unit import Worker
from raymerge.storage.store import Access
from tests.conftest import Place, run_settings, shard_hashes

INDEX = "model.safetensors.index.json"


class ScriptedEngine:
    """Runs units in this thread, in the order and number it was told to.

    Args:
        plan: The plan.
        folder: Where shards are filled.
        order: Puts the units of a merge into the order in which they come back.
        dies_after: Units of a merge after which it raises.
        touch: Called with each unit's shard file once the unit is done.
    """

    name = "scripted"
    workers = 1
    lost_workers = redone_units = 0

    def __init__(
        self,
        plan: Plan,
        folder: str,
        report: OnProgress,
        *,
        order: Callable[[Sequence[Any]], list[Any]] = list,
        dies_after: int | None = None,
        touch: Callable[[Path], None] = lambda _: None,
    ) -> None:
        settings = run_settings(plan, Path(folder))
        self._worker = Worker(settings, stop=Event(), on_progress=report)
        self._folder = Path(folder)
        self._order, self._dies_after, self._touch = order, dies_after, touch
        self.called: list[tuple[Call, int]] = []

    def run(
        self,
        call: Call,
        units: Sequence[WorkUnit],
        *args: Any,
        before: Callable[[WorkUnit], WorkUnit | None],
        meanwhile: Callable[[], None] = lambda: None,  # noqa: ARG002 - nothing takes long here
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """See `Engine.run`."""
        ordered = self._order(units) if call == "merge" else units
        for number, unit in enumerate(ordered):
            if call == "merge" and number == self._dies_after:
                raise ClusterError("the workers are gone")
            before(unit)
            self.called.append((call, unit.number))
            result = getattr(self._worker, call)(unit, *args)
            if call == "merge":
                self._touch(self._folder / unit.shard)
            yield unit, result

    def close(self) -> None:
        """See `Engine.close`."""
        self._worker.close()


@pytest.fixture
def plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Several shards of several units, with a survey before them."""
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 3)
    place.llamas()
    planned = raymerge.plan(
        place.any_recipe("ties", trim="model"),
        engine="local", device="cpu", workers=1, shard_bytes=6000,
    )  # fmt: skip
    assert len(planned.units) > len(planned.shards) > 1
    return planned


@pytest.fixture
def engines() -> list[ScriptedEngine]:
    """Every engine that a test has started."""
    return []


def run(
    plan: Plan, out: Path, engines: list[ScriptedEngine] | None = None, **script: Any
) -> MergeResult:
    def start(destination: Destination, report: OnProgress) -> ScriptedEngine:
        engine = ScriptedEngine(plan, destination.units_at, report, **script)
        if engines is not None:
            engines.append(engine)
        return engine

    return execute(
        plan, str(out), start, overwrite=False, on_progress=lambda _: None, access=Access()
    )


def merges(engine: ScriptedEngine) -> list[int]:
    return [number for call, number in engine.called if call == "merge"]


def calls(engine: ScriptedEngine) -> set[Call]:
    return {call for call, _ in engine.called}


@pytest.mark.parametrize(
    "order",
    [lambda units: list(reversed(units)), lambda units: sorted(units, key=lambda u: u.number % 3)],
    ids=["reversed", "interleaved"],
)
def test_units_may_land_in_any_order(
    place: Place, plan: Plan, order: Callable[[Sequence[Unit]], list[Unit]]
) -> None:
    one = run(plan, place / "in order")
    other = run(plan, place / "other", order=order)

    assert one.shards == other.shards
    assert shard_hashes(place / "other") == {s.name: s.sha256 for s in one.shards}
    assert raymerge.verify(place / "other").ok


@pytest.mark.parametrize("dies_after", [0, 1, 4])
def test_a_run_that_died_goes_on_where_it_was(
    place: Place, plan: Plan, dies_after: int, engines: list[ScriptedEngine]
) -> None:
    whole = run(plan, place / "whole")
    with pytest.raises(ClusterError):
        run(plan, place / "out", engines, dies_after=dies_after)
    assert not (place / "out" / INDEX).exists()
    result = run(plan, place / "out", engines)

    first, second = engines
    assert result.resumed_units == dies_after
    assert merges(second) == [u.number for u in plan.units if u.number not in merges(first)]
    assert calls(first) == {"count_high", "count_low", "count_ties", "merge"} - (
        {"merge"} if dies_after == 0 else set()
    )
    assert calls(second) == {"merge"}, "a resumed run does not survey again"
    assert result.shards == whole.shards


def test_receipts_that_are_found_are_not_written_again(
    place: Place, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError):
        run(plan, place / "out", dies_after=2)
    kept: list[int] = []
    keep = FolderDestination.keep

    def count(destination: FolderDestination, receipt: Receipt) -> None:
        kept.append(receipt.unit)
        keep(destination, receipt)

    monkeypatch.setattr(FolderDestination, "keep", count)
    assert run(plan, place / "out").resumed_units == 2
    assert len(kept) == len(plan.units) - 2


def test_a_receipt_whose_bytes_have_changed_is_not_trusted(
    place: Place, plan: Plan, engines: list[ScriptedEngine]
) -> None:
    whole = run(plan, place / "whole")
    with pytest.raises(ClusterError):
        run(plan, place / "out", dies_after=3)
    unit = plan.units[1]
    with next((place / "out").glob(f".raymerge/*/{unit.shard}")).open("r+b") as file:
        file.seek(unit.start)
        file.write(b"\xff\xff\xff")
    result = run(plan, place / "out", engines)

    assert result.resumed_units == 2
    assert merges(engines[0])[0] == 1
    assert result.shards == whole.shards


def test_a_unit_that_comes_back_twice_counts_once(place: Place, plan: Plan) -> None:
    whole = run(plan, place / "whole")
    result = run(plan, place / "out", order=lambda units: [*units, units[0]])

    assert result.shards == whole.shards


def test_a_unit_that_never_comes_back_is_a_commit_error(place: Place, plan: Plan) -> None:
    with pytest.raises(CommitError, match="1 units have no receipt"):
        run(plan, place / "out", order=lambda units: list(units)[:-1])
    assert not (place / "out" / INDEX).exists()


def test_a_shard_that_lost_its_header_is_a_commit_error(place: Place, plan: Plan) -> None:
    def clobber(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(b"\0")

    with pytest.raises(CommitError, match="does not begin with its planned header"):
        run(plan, place / "out", touch=clobber)
    assert not (place / "out" / INDEX).exists()


def test_a_shard_that_vanishes_is_no_checkpoint(place: Place, plan: Plan) -> None:
    with pytest.raises((OSError, StorageError)):
        run(plan, place / "out", touch=Path.unlink)
    assert not (place / "out" / INDEX).exists()


def test_a_finished_plan_starts_no_engine(
    place: Place, plan: Plan, engines: list[ScriptedEngine]
) -> None:
    whole = run(plan, place / "out")
    result = run(plan, place / "out", engines)

    assert engines == []
    assert (result.engine, result.resumed_units) == ("none", len(plan.units))
    assert (result.shards, result.tensors) == (whole.shards, whole.tensors)


def test_what_was_moved_is_counted(place: Place, plan: Plan) -> None:
    result = run(plan, place / "out")

    assert result.bytes_read == plan.bytes_read
    assert result.bytes_written == sum(node.slot.nbytes for node in plan.nodes)
    assert (result.workers, result.engine) == (1, "scripted")
