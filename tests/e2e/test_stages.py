"""Stages in one graph give the bytes of stages run one after another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import raymerge
from raymerge.plan import reading
from raymerge.plan.memory import Budget
from raymerge.runtime import inputs
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, shard_hashes

Document = dict[str, Any]
MODELS = ("base", "a", "b", "c")
LOCATIONS = {"model", "base_model"}


def stage(
    method: str, *models: str, name: str | None = None, base: str | None = None, **top: Any
) -> Document:
    """A document; what is under no key of a recipe's is a knob."""
    keys = {"seed", "dtype", "out_dtype", "keep", "drop", "nan", "trim"}
    return {
        **({"name": name} if name else {}),
        "merge_method": method,
        **({"base_model": base} if base else {}),
        "models": [{"model": model} for model in models],
        "parameters": {key: value for key, value in top.items() if key not in keys},
        **{key: value for key, value in top.items() if key in keys},
    }


TIES: dict[str, Any] = {"weight": 0.6, "density": 0.4}
CASES: dict[str, list[Document]] = {
    "linear of two slerps": [
        stage("slerp", "a", name="first", base="base", t=0.3),
        stage("slerp", "c", name="second", base="b", t=0.6),
        stage("linear", "first", "second", weight=0.5),
    ],
    "ties over a linear base": [
        stage("linear", "a", "base", name="soup", weight=0.7),
        stage("ties", "b", "c", base="soup", **TIES),
    ],
    "slerp of ties of ties": [
        stage("ties", "a", "b", name="one", base="base", **TIES),
        stage("ties", "one", "c", name="two", base="base", rescale="l1", **TIES),
        stage("slerp", "two", base="one", t=0.4),
    ],
    "ties over ties": [
        stage("ties", "a", "b", name="one", base="base", **TIES),
        stage("ties", "one", "c", base="base", **TIES),
    ],
    "dare over stages": [
        stage("dare_linear", "a", "b", name="one", base="base", seed=5, weight=0.5, density=0.3),
        stage("linear", "b", "c", name="two", weight=1),
        stage("dare_ties", "one", "two", base="base", rescale="l1", seed=9, **TIES),
    ],
    "four deep, one of them twice": [
        stage("linear", "a", "b", name="one", weight=[0.2, 0.9]),
        stage("task_arithmetic", "one", "c", name="two", base="base", weight=0.4),
        stage("ties", "two", "one", name="three", base="base", **TIES),
        stage("slerp", "three", base="one", t=[0, 1]),
    ],
    "model-wide trim over stages": [
        stage("linear", "a", "b", name="one", weight=1),
        stage("ties", "one", "c", base="base", trim="model", **TIES),
    ],
    "kept, dropped and copied": [
        stage("linear", "a", "b", name="one", weight=1, keep="*.q_proj.weight",
              drop="*.k_proj.weight"),
        stage("passthrough", "one", name="two"),
        stage("slerp", "c", base="two", t=0.5, keep="*norm.weight", drop="*.k_proj.weight"),
    ],
}  # fmt: skip
EACH_CASE = pytest.mark.parametrize("case", CASES)


def with_dtype(documents: list[Document], dtype: str | None) -> list[Document]:
    return [document | ({"dtype": dtype} if dtype else {}) for document in documents]


def located(value: Any, where: Mapping[str, Path]) -> Any:
    """A document whose models are paths."""
    if isinstance(value, dict):
        return {
            key: str(where.get(item, item)) if key in LOCATIONS else located(item, where)
            for key, item in value.items()
        }
    return [located(item, where) for item in value] if isinstance(value, list) else value


def fused(place: Place, documents: list[Document]) -> Path:
    """The recipe of all documents."""
    where = {name: place / name for name in MODELS}
    path = place / "fused.yaml"
    path.write_text(yaml.safe_dump_all([located(each, where) for each in documents]))
    return path


def merge(recipe: Path, out: Path, **options: Any) -> raymerge.runtime.driver.MergeResult:
    call = {"engine": "local", "device": "cpu", "workers": 1, **options}
    return raymerge.merge(recipe, out, **call)


def in_turn(place: Place, documents: list[Document], **options: Any) -> Path:
    """Run one stage after another; each is written to a folder of its name."""
    where = {name: place / name for name in MODELS}
    for number, document in enumerate(documents):
        path = place / f"stage-{number}.yaml"
        path.write_text(yaml.safe_dump(located(document, where)))
        out = place / "in turn" / str(document.get("name", "out"))
        merge(path, out, overwrite=True, **options)
        where[str(document.get("name"))] = out
    return out


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`base` and three fine-tunes whose deltas are on a grid: many are equal in magnitude."""
    place = Place(tmp_path_factory.mktemp("sources"))
    base = tiny_llama_tensors(0, dtype=request.param)
    generator = torch.Generator().manual_seed(9)
    base["large.weight"] = torch.randn(3001, 7, generator=generator).to(request.param)
    for number, name in enumerate(MODELS):
        tensors = fine_tune(base, number) if number else dict(base)
        steps = torch.randint(-3, 4, (3001, 7), generator=generator) * (2**-6 if number else 0)
        tensors["large.weight"] = (base["large.weight"].float() + steps).to(request.param)
        place.model(name, tensors, config=llama_config(tensors))
    return place


@EACH_CASE
@pytest.mark.parametrize("edges", [None, "float32", "bfloat16"])
def test_the_bytes_are_those_of_stages_run_in_turn(
    sources: Place, case: str, edges: str | None
) -> None:
    documents = with_dtype(CASES[case], edges)
    expected = in_turn(sources, documents, shard_bytes=20_000)
    recipe = fused(sources, documents)
    for tile in (256, 2048, None):
        out = sources / f"fused-{tile}"
        merge(recipe, out, overwrite=True, tile_elements=tile, shard_bytes=20_000)
        assert shard_hashes(out) == shard_hashes(expected), tile
        assert (out / "config.json").read_bytes() == (expected / "config.json").read_bytes()


@pytest.fixture
def _nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held between sweeps, and samples are taken of tensors of 4096 entries."""
    monkeypatch.setattr(Budget, "holds", lambda _self, _node: False)
    monkeypatch.setattr(inputs, "SAMPLE_ELEMENTS", 4096)
    monkeypatch.setattr(reading, "SAMPLE_ELEMENTS", 4096)


@EACH_CASE
@pytest.mark.usefixtures("_nothing_fits")
def test_merging_a_result_again_for_every_sweep_changes_no_byte(sources: Place, case: str) -> None:
    """Samples jump ahead, sweeps go back: whoever counts ties has to count them again."""
    expected = in_turn(sources, CASES[case], shard_bytes=20_000)
    recipe = fused(sources, CASES[case])
    for tile in (512, 2**14):
        out = sources / f"again-{tile}"
        merge(recipe, out, overwrite=True, tile_elements=tile, shard_bytes=20_000)
        assert shard_hashes(out) == shard_hashes(expected), tile
