"""Every trial of a sweep is its own merge, byte for byte: every method, every recipe, both engines.

What a trial is held against is `raymerge merge` on the trial's recipe, here; that a merge on Ray is
the same is for `test_engines`, and for one recipe of each family here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from raymerge.methods import methods
from tests.clusters import nodes
from tests.conftest import METHOD_KNOBS, Place, shard_hashes
from tests.test_recipes import RECIPES, models  # noqa: F401 - a fixture

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
FAMILIES = {"span": "slerp", "delta": "dare_ties", "free": "sce"}
EACH_ENGINE = pytest.mark.parametrize("engine", ["local", "ray"])
SHARD_BYTES = 4000


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with nodes(2, num_cpus=1) as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two recipes of every method, and in `own` what each of them merges to."""
    place = Place(tmp_path_factory.mktemp("many"))
    place.llamas(3)
    for method in METHOD_KNOBS:
        place.any_recipe(method)
        merge(place, place / f"{method}.yaml", place / "own" / method)
        place.any_recipe(method, **changed(method)).rename(place / f"{method}-2.yaml")
        place.any_recipe(method)
        merge(place, place / f"{method}-2.yaml", place / "own" / f"{method}-2")
    return place


def changed(method: str) -> dict[str, Any]:
    """The same method with a turn at every knob, or where it has none another seed."""
    knobs = METHOD_KNOBS[method]
    return {"parameters": {name: _turned(knob) for name, knob in knobs.items()}, "seed": 1}


def _turned(knob: Any) -> Any:
    if isinstance(knob, bool):
        return not knob
    return knob * 0.8 if isinstance(knob, float) else knob - 2 if isinstance(knob, int) else knob


def options(engine: str, address: str) -> list[object]:
    where = ["--address", address, "--workers", 2] if engine == "ray" else ["--workers", 2]
    return ["--engine", engine, *where, "--device", "cpu", "--memory", "1GiB", "--quiet"]


def merge(place: Place, recipe: Path, out: Path, *more: object) -> None:
    run = more or ("--engine", "local", "--device", "cpu", "--workers", 2, "--quiet")
    done = place.run("merge", recipe, out, "--shard-size", SHARD_BYTES, *run)
    assert done.rc == 0, (recipe, done.err)


def assert_own(out: Path, own: Mapping[str, Path]) -> None:
    """Each trial of the ledger is what its recipe was merged to."""
    rows = parquet.read_table(out / "raymerge-trials.parquet").to_pylist()
    assert {row["name"] for row in rows} == own.keys()
    for row in rows:
        assert (row["state"], row["error"]) == ("merged", None), row
        assert shard_hashes(Path(row["out"])) == shard_hashes(own[row["name"]]) != {}, row["name"]


@EACH_ENGINE
def test_every_method_in_one_command(
    many: Place, tmp_path: Path, engine: str, address: str
) -> None:
    assert METHOD_KNOBS.keys() == set(methods())
    recipes = [many / f"{method}{end}.yaml" for method in METHOD_KNOBS for end in ("", "-2")]
    run = options(engine, address)
    done = many.run(
        "sweep", *recipes, tmp_path / "out", "--shard-size", SHARD_BYTES, *run, "--json"
    )

    assert done.rc == 0, done.err
    assert_own(tmp_path / "out", {path.stem: many / "own" / path.stem for path in recipes})
    # Two rounds, each a read of what the two models and their base hold.
    assert done.json["bytes_read"] < sum(
        path.stat().st_size for path in (many / "own").glob("*/*.safetensors")
    )


@EACH_ENGINE
def test_every_recipe_of_the_repository_in_one_command(
    models: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    address: str,
) -> None:
    monkeypatch.chdir(models)
    place = Place(tmp_path)
    for path in RECIPES:
        merge(place, path, place / "own" / path.stem)
    run = options(engine, address)
    done = place.run("sweep", *RECIPES, place / "out", "--shard-size", SHARD_BYTES, *run)

    assert done.rc == 0, done.err
    assert_own(place / "out", {path.stem: place / "own" / path.stem for path in RECIPES})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_on_ray_is_the_same(many: Place, tmp_path: Path, family: str, address: str) -> None:
    method = FAMILIES[family]
    merge(many, many / f"{method}.yaml", tmp_path / "own", *options("ray", address))
    assert shard_hashes(tmp_path / "own") == shard_hashes(many / "own" / method)
