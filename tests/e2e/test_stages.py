"""Stages in one graph give the bytes of stages run one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import raymerge
from raymerge.plan import memory
from raymerge.plan.memory import Budget
from raymerge.runtime import inputs
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import Place, finish, read_tensors, shard_hashes, spawn
from tests.e2e.test_experts import model as experts
from tests.e2e.test_experts import packed
from tests.peer.mergekit import Mergekit

Document = dict[str, Any]
Layout = Callable[[dict[str, Tensor]], dict[str, Tensor]]
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
    monkeypatch.setattr(memory, "SAMPLE_ELEMENTS", 4096)


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


@EACH_CASE
def test_the_plan_says_what_is_read(sources: Place, case: str) -> None:
    recipe = fused(sources, CASES[case])
    call: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 1, "tile_elements": 1024}
    plan = raymerge.plan(recipe, **call)
    result = raymerge.merge(recipe, sources / "counted", overwrite=True, **call)

    assert result.bytes_read == plan.bytes_read
    assert not any(path.is_dir() for path in (sources / "counted").iterdir())


def test_what_is_merged_again_is_counted_too(
    sources: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "holds", lambda _self, _node: False)
    recipe = fused(sources, CASES["linear of two slerps"])
    plan = raymerge.plan(recipe, engine="local", device="cpu", workers=1)
    result = merge(recipe, sources / "counted", overwrite=True)

    once = sum(node.input_bytes for node in plan.nodes)
    # Two sweeps of every source: inner products, then the sum.
    assert result.bytes_read == plan.bytes_read == 2 * once


# --- what draws are keyed by ---------------------------------------------------------------------


def test_draws_are_those_of_each_stage_on_its_own(place: Place) -> None:
    """Stages that call different models by one name, and one model by two, draw as ever."""
    place.llamas(3)
    for name, folder in (("a", "m/final"), ("b", "n/final"), ("c", "c")):
        (place / folder).parent.mkdir(exist_ok=True)
        if name != folder:
            (place / name).rename(place / folder)
    where = {name: place / name for name in ("base", "m/final", "n/final", "c")}
    drawn: dict[str, Any] = {"base": "base", "weight": 0.5, "density": 0.4, "dtype": "float32"}
    documents = [
        stage("dare_linear", "m/final", "c", name="one", **drawn),
        stage("dare_linear", "n/final", "m/final", name="two", **drawn),
        stage("dare_ties", "one", "n/final", "two", **drawn),
    ]
    documents[1]["models"][1]["label"] = "other"
    path = place / "fused.yaml"
    path.write_text(yaml.safe_dump_all([located(each, where) for each in documents]))
    plan = raymerge.plan(path, engine="local", device="cpu")
    merge(path, place / "fused")
    for number, document in enumerate(documents):
        alone = place / f"{number}.yaml"
        alone.write_text(yaml.safe_dump(located(document, where)))
        where[document.get("name", "out")] = place / "in turn" / document.get("name", "out")
        merge(alone, where[document.get("name", "out")])

    assert [source.label for source in plan.sources] == ["base", "final#2", "c", "final#4"]
    assert shard_hashes(place / "fused") == shard_hashes(where["out"])


def test_another_seed_is_another_merge_in_every_stage(place: Place) -> None:
    place.llamas(3)
    recipe = fused(place, CASES["dare over stages"])
    digests = set()
    for seed in (None, 5, 9):
        plan = raymerge.plan(recipe, engine="local", device="cpu", seed=seed)
        digests.add(plan.digest)
        assert {stage.recipe.seed for stage in plan.stages} == {seed} or seed is None
    assert len(digests) == 3


# --- what is beside the tensors ------------------------------------------------------------------


def test_the_head_is_settled_stage_by_stage(place: Place) -> None:
    """A stage of tied models has no head; beside one with a head of its own it gets one."""
    base = place.llamas(3, tied=True)
    untied = fine_tune({**base, "lm_head.weight": base["model.embed_tokens.weight"]}, 7)
    place.model("c", untied, config=llama_config(untied))
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("ties", "c", base="one", weight=1, density=0.5),
    ]
    out = in_turn(place, documents)
    merge(fused(place, documents), place / "fused")

    assert shard_hashes(place / "fused") == shard_hashes(out)
    assert (place / "fused" / "config.json").read_bytes() == (out / "config.json").read_bytes()
    assert "lm_head.weight" in read_tensors(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_tied_head_that_differs_is_found_inside_a_stage(place: Place) -> None:
    place.llamas(2, tied=True)
    wrong = read_tensors(place / "a")
    wrong["lm_head.weight"] = wrong["model.embed_tokens.weight"] + 1
    place.model("a", wrong, config=llama_config(wrong, tied=True))
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.merge(fused(place, documents))

    assert done.rc == 3
    assert "config.json says the head is tied, but lm_head.weight differs" in done.err


def test_config_and_tokenizer_come_through_stages(place: Place) -> None:
    place.llamas(2)
    for name, of in {"a": "a", "b": "a", "base": "base"}.items():
        (place / name / "merges.txt").write_text(of)
    documents = [
        stage("linear", "a", "b", name="one", weight=1, dtype="float32"),
        stage("slerp", "base", base="one", t=0.5, dtype="float16"),
    ]
    merge(fused(place, documents), place / "fused")
    config = json.loads((place / "fused" / "config.json").read_text())
    record = json.loads((place / "fused" / "raymerge.json").read_text())

    assert (place / "fused" / "merges.txt").read_text() == "a"
    assert config["dtype"] == "float16"
    assert [source["label"] for source in record["sources"]] == ["a", "b", "base"]
    assert [source["donor"] for source in record["sources"]] == [True, False, False]
    assert record["stages"] == [
        {"name": "one", "method": "linear", "seed": 0, "sources": ["a", "b"]},
        {"name": None, "method": "slerp", "seed": 0, "sources": ["one", "base"]},
    ]
    assert raymerge.verify(place / "fused").ok


@pytest.mark.parametrize("layouts", [(packed, dict), (dict, packed)], ids=["packed", "separate"])
def test_a_result_is_seen_in_the_layout_of_the_next_stage(
    place: Place, layouts: tuple[Layout, Layout]
) -> None:
    """Experts that one stage has in one tensor and the next one apart, and the other way round."""
    for seed, (name, layout) in enumerate(zip(MODELS, (*layouts, *layouts), strict=True)):
        place.model(name, layout(experts(seed)))
    documents = [
        stage("ties", "a", "b", name="one", base="base", weight=1, density=0.3, dtype="float32"),
        stage("slerp", "one", base="c", t=0.3),
    ]
    expected = in_turn(place, documents)
    for tile in (256, None):
        merge(fused(place, documents), place / f"{tile}", tile_elements=tile)
        assert shard_hashes(place / f"{tile}") == shard_hashes(expected)


# --- refusals ------------------------------------------------------------------------------------


def test_a_stage_whose_sources_do_not_match_is_named(place: Place) -> None:
    place.llamas(2)
    short = read_tensors(place / "b")
    del short["model.norm.weight"]
    place.model("b", short)
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert done.error["message"].startswith("stage one: b lacks 1 tensors that other sources have")


def test_what_a_stage_drops_is_missing_in_the_next(place: Place) -> None:
    place.llamas(2)
    documents = [
        stage("linear", "a", "b", name="one", weight=1, drop="model.norm.weight"),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.error["message"].startswith("one lacks 1 tensors that other sources have: ")
    documents[1]["drop"] = "model.norm.weight"
    assert place.run("plan", fused(place, documents)).rc == 0


def test_shapes_that_differ_between_stages_name_the_stage(place: Place) -> None:
    place.llamas(2)
    wide = tiny_llama_tensors(0)
    wide["model.norm.weight"] = torch.ones(24)
    place.model("c", wide, config=llama_config(wide))
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("slerp", "one", base="c", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.error["message"].startswith("model.norm.weight has shape [24] in c and [16] in one")


def test_a_trim_over_the_whole_model_has_to_be_written(place: Place) -> None:
    place.llamas(2)
    documents = [
        stage("ties", "a", "b", name="one", base="base", trim="model", **TIES),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert "stage one: " in done.error["message"]
    assert "Run this stage on its own and name its output" in done.error["message"]


def test_a_nan_is_found_in_its_stage(place: Place) -> None:
    base = place.llamas(2)
    base["model.norm.weight"][3] = torch.nan
    place.model("a", base)
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.merge(fused(place, documents), "out", "--json", "--overwrite")

    assert done.rc == 1
    assert done.error["message"].startswith("stage one: a: model.norm.weight holds a NaN or Inf")
    documents[0]["nan"] = "pass"
    done = place.merge(fused(place, documents), "out", "--json", "--overwrite")
    assert done.error["message"].startswith("one: model.norm.weight holds a NaN or Inf")
    documents[1]["nan"] = "pass"
    assert place.merge(fused(place, documents), "out", "--overwrite").rc == 0


# --- engines and peers ---------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_merges_the_same(place: Place) -> None:
    place.llamas(3)
    recipe = fused(place, CASES["slerp of ties of ties"])
    expected = place.merge(recipe, "local", "--shard-size", 4000, "--json").json
    options = ["--engine", "ray", "--device", "cpu", "--workers", 2, "--memory", "1GiB"]
    process = spawn("merge", recipe, place / "ray", *options, "--shard-size", 4000, "--json")
    done = finish(process, 200)

    assert done.rc == 0, done.err
    assert done.json["shards"] == expected["shards"]


@pytest.mark.peer
@pytest.mark.peer
def test_mergekit_multi_gives_the_same(place: Place, mergekit: Mergekit) -> None:
    """Its stages are checkpoints in a folder; what it writes last is what we write."""
    place.llamas(3, dtype=torch.float32)
    documents = [
        stage("slerp", "base", "a", name="first", base="base", t=0.3, dtype="float32"),
        stage("task_arithmetic", "first", "b", name="second", base="base", weight=0.5,
              dtype="float32"),
        stage("linear", "second", "c", "first", weight=0.5, dtype="float32"),
    ]  # fmt: skip
    recipe = fused(place, documents)
    folders = ["--out-path", str(place / "theirs"), "-I", str(place / "between")]
    assert not mergekit.run("mergekit-multi", recipe, *folders, "--no-copy-tokenizer", "--quiet")
    ours, theirs = place.merged(recipe, "ours"), read_tensors(place / "theirs")

    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-6), name
