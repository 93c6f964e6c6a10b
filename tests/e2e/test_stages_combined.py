"""Stages of every method, and stages with adapters, slices, modules and vocabularies."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

import raymerge
from raymerge.plan import memory
from raymerge.plan.memory import Budget
from raymerge.runtime import inputs
from raymerge.runtime.ledger import LEDGER_NAMES
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors
from tests.conftest import METHOD_KNOBS, NUM_SOURCES, WITHOUT_BASE, Place, shard_hashes
from tests.e2e.test_adapters import prepare
from tests.e2e.test_stages import MODELS, Document, fused, in_turn, merge, stage
from tests.e2e.test_vocabularies import write_models

SHAPES = {"square.weight": (64, 64), "wide.weight": (9, 700), "deep.weight": (3, 40, 5)}
"""Rows of 64 end with tiles, rows of 700 are longer than small ones, those of 40 lie apart."""


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def gridded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """`base` and fine-tunes with deltas on a grid: many entries are tied at any threshold."""
    place = Place(tmp_path_factory.mktemp("gridded"))
    generator = torch.Generator().manual_seed(4)
    base = tiny_llama_tensors(0, dtype=request.param, layers=1)
    for name, shape in SHAPES.items():
        base[name] = torch.randn(shape, generator=generator).to(request.param)
    for number, name in enumerate(MODELS):
        tensors = fine_tune(base, number) if number else dict(base)
        for wide, shape in SHAPES.items():
            steps = torch.randint(-3, 4, shape, generator=generator) * (2**-6 if number else 0)
            tensors[wide] = (base[wide].float() + steps).to(request.param)
        place.model(name, tensors, config=llama_config(tensors))
    return place


def inner(method: str) -> Document:
    """A stage of the method, under all of its passes."""
    models = ("a", "b")[: NUM_SOURCES.get(method, 2)]
    base = None if method in WITHOUT_BASE else "base"
    return stage(method, *models, name="one", base=base, seed=7, **METHOD_KNOBS[method])


def assert_same(place: Place, documents: list[Document], *tiles: int | None) -> None:
    """The bytes of stages in one graph are those of stages in turn."""
    expected = in_turn(place, documents, shard_bytes=20_000)
    recipe = fused(place, documents)
    for tile in tiles:
        out = place / f"fused-{tile}"
        merge(recipe, out, overwrite=True, tile_elements=tile, shard_bytes=20_000)
        assert shard_hashes(out) == shard_hashes(expected), tile
        assert (out / "config.json").read_bytes() == (expected / "config.json").read_bytes()


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_any_method_may_be_a_stage_inside(gridded: Place, method: str) -> None:
    outer = stage("ties", "one", "c", base="base", weight=0.6, density=0.4, rescale="l1")
    assert_same(gridded, [inner(method), outer], 256, 768, None)


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_any_method_may_be_merged_again_for_every_sweep(
    gridded: Place, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples jump ahead, sweeps go back: whoever counts ties has to count them again."""
    monkeypatch.setattr(Budget, "holds", lambda _self, _node: False)
    monkeypatch.setattr(inputs, "SAMPLE_ELEMENTS", 2048)
    monkeypatch.setattr(memory, "SAMPLE_ELEMENTS", 2048)
    outer = stage("breadcrumbs", "one", "c", base="one", weight=0.6, density=0.4, gamma=0.1)
    outer["models"] = [{"model": "base"}, {"model": "c"}]
    assert_same(gridded, [inner(method), outer], 256, 512)


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_any_method_may_merge_results(gridded: Place, method: str) -> None:
    documents = [
        stage("breadcrumbs_ties", "a", "b", name="one", base="base", weight=0.5, density=0.4,
              gamma=0.1),
        stage("della", "b", "c", name="two", base="base", weight=0.5, density=0.6),
        {**inner(method), "name": "out"},
    ]  # fmt: skip
    names = {"a": "one", "b": "two"}
    documents[-1]["models"] = [{"model": names[e["model"]]} for e in documents[-1]["models"]]
    if len(documents[-1]["models"]) == 1:
        documents[-1]["base_model"] = "two"
        if method in WITHOUT_BASE:
            documents[-1].pop("base_model")
            documents.pop(1)
    assert_same(gridded, documents, 256, 768, None)


# --- slices and modules --------------------------------------------------------------------------


def take(model: str, start: int, stop: int) -> Document:
    return {"model": model, "layer_range": [start, stop]}


def stacked(*slices: list[Document], name: str | None = None, **top: Any) -> Document:
    return {
        **({"name": name} if name else {}),
        "merge_method": "passthrough",
        "slices": [{"sources": sources} for sources in slices],
        **top,
    }


@pytest.fixture
def layered(place: Place) -> Place:
    for seed, name in enumerate(MODELS):
        tensors = tiny_llama_tensors(seed, layers=3)
        config = llama_config(tensors, layer_types=[f"{name}{number}" for number in range(3)])
        place.model(name, tensors, config=config)
    return place


LAYERS: dict[str, list[Document]] = {
    "a stack is merged": [
        stacked([take("a", 0, 2)], [take("b", 1, 3)], name="one"),
        stacked([take("b", 0, 1)], [take("c", 0, 3)], name="two"),
        stage("slerp", "two", base="one", t=[0.1, 0.9]),
    ],
    "layers of a result are taken": [
        stage("ties", "a", "b", name="one", base="base", weight=0.5, density=0.4),
        stacked([take("one", 1, 3)], [take("c", 0, 2)], [take("one", 0, 2)]),
    ],
    "a stack of a stack": [
        stacked([take("a", 0, 2)], [take("b", 0, 3)], name="one"),
        stacked([take("one", 3, 5)], [take("one", 0, 3)], [take("c", 2, 3)], name="two"),
        stacked([take("two", 0, 5)]),
    ],
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_numbered_through_stages(layered: Place, case: str) -> None:
    assert_same(layered, LAYERS[case], 256, None)
    config = json.loads((layered / "fused-None" / "config.json").read_text())

    assert len(config["layer_types"]) == config["num_hidden_layers"]
    assert raymerge.verify(layered / "fused-None").ok


def test_the_plan_shows_the_layers_of_every_stage(layered: Place) -> None:
    recipe = fused(layered, LAYERS["a stack of a stack"])
    text = layered.run("plan", recipe).out
    document = layered.run("plan", recipe, "--json").json

    assert "stage two: model.layers: 6 of 3 slices" in text
    assert "one [3, 5)" in text
    assert "config.json: num_hidden_layers 5" in text
    assert [stage["stacks"][0]["layers"] for stage in document["stages"]] == [5, 6, 5]
    assert len(document["stacks"]) == 1


def test_modules_may_be_merged_inside(layered: Place) -> None:
    modules = {
        "name": "one",
        "merge_method": "linear",
        "modules": {
            "model.layers": {"models": [{"model": "a"}, {"model": "b"}]},
            "lm_head": {"models": [{"model": "c"}]},
        },
        "parameters": {"weight": 1},
        "keep": ["*embed_tokens*", "model.norm.weight"],
    }
    outer = stage("slerp", "one", base="base", t=0.3)
    assert_same(layered, [modules, outer], 256, None)


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_adapters_are_added_in_whatever_stage_lists_them(place: Place, method: str) -> None:
    prepare(place)
    base, lora = str(place / "base"), {name: str(place / f"lora-{name}") for name in "ab"}
    knobs = METHOD_KNOBS[method]
    models = (f"{base}+{lora['a']}", lora["b"])[: NUM_SOURCES.get(method, 2)]
    documents = [
        stage(method, *models, name="one", base="base", **knobs),
        stage("task_arithmetic", f"{base}+{lora['b']}", "one", name="two", base="base", weight=0.7),
        stage("ties", lora["a"], "two", base="base", weight=0.5, density=0.3),
    ]
    assert_same(place, documents, 256, None)


@pytest.mark.parametrize("tile", [256, None])
def test_an_adapter_is_added_to_the_result_that_is_the_base(place: Place, tile: int | None) -> None:
    prepare(place)
    documents = [
        stage("ties", "a", "b", name="one", base="base", weight=0.5, density=0.3),
        stage("dare_ties", str(place / "lora-a"), str(place / "lora-b"), base="one", weight=0.5,
              density=0.6, seed=3),
    ]  # fmt: skip
    assert_same(place, documents, tile)


def test_an_adapter_of_two_stages_is_one_source(place: Place) -> None:
    prepare(place)
    lora = str(place / "lora-a")
    documents = [
        stage("task_arithmetic", lora, name="one", base="base", weight=0.5),
        stage("task_arithmetic", lora, "one", base="base", weight=0.5),
    ]
    plan = raymerge.plan(fused(place, documents), engine="local", device="cpu", workers=1)

    assert [source.label for source in plan.sources] == ["base", "lora-a"]
    assert [source.adapter is not None for source in plan.sources] == [False, True]


def test_an_adapter_on_a_result_is_refused(place: Place) -> None:
    prepare(place)
    lora = str(place / "lora-a")
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        stage("passthrough", f"one+{lora}"),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert f"one+{lora} adds an adapter to the result of a stage" in done.error["message"]
    assert f"List {lora} as a model of its own with base_model: one" in done.error["message"]


# --- vocabularies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"tokenizer_source": "b"},
        {"tokenizer_source": "union"},
        {"tokenizer": {"source": "base", "pad_to_multiple_of": 64}},
    ],
    ids=str,
)
def test_a_tokenizer_of_a_stage_inside_is_refused(place: Place, given: Document) -> None:
    write_models(place)
    documents = [
        {**stage("linear", "base", "b", name="one", weight=1), **given},
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert "stage one: " in done.error["message"]
    assert "changes the vocabulary" in done.error["message"]
    assert "only in the stage that is written" in done.error["message"]


def test_a_chat_template_of_a_stage_inside_is_refused(place: Place) -> None:
    place.llamas(2)
    documents = [
        {**stage("linear", "a", "b", name="one", weight=1), "chat_template": "chatml"},
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert "chat_template: raymerge settles it only in the stage" in done.error["message"]


@pytest.mark.parametrize("policy", ["union", "base"])
def test_a_policy_inside_may_say_what_is_so_without_it(place: Place, policy: str) -> None:
    write_models(place)
    one = stage("linear", "base", "c", name="one", weight=1)
    last = {**stage("linear", "b", base="one", weight=0.5), "tokenizer_source": "base"}
    shutil.copytree(place / "base", place / "c")
    merge(fused(place, [one, last]), place / "without")
    documents = [{**one, "tokenizer_source": policy}, last]
    merge(fused(place, documents), place / "with")

    assert shard_hashes(place / "with") == shard_hashes(place / "without")


def test_the_last_stage_may_have_a_policy(place: Place) -> None:
    """Rows of stored tensors are put in order; those of a result stay where they are."""
    write_models(place)
    documents = [
        stage("passthrough", "base", name="one", scale=0.5),
        {**stage("linear", "b", base="one", weight=0.5), "tokenizer_source": "base"},
    ]
    expected = in_turn(place, documents)
    merge(fused(place, documents), place / "fused")

    assert shard_hashes(place / "fused") == shard_hashes(expected)
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        assert (place / "fused" / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_template_may_be_chosen_in_the_last_stage(place: Place) -> None:
    place.llamas(2)
    template = "{{ messages }} of a"
    config = json.dumps({"chat_template": template})
    (place / "a" / "tokenizer_config.json").write_text(config)
    documents = [
        stage("linear", "a", "b", name="one", weight=1),
        {**stage("slerp", "one", base="base", t=0.5), "chat_template": "auto"},
    ]
    expected = in_turn(place, documents)
    merge(fused(place, documents), place / "fused")

    told = {"README.md", "raymerge.json", *LEDGER_NAMES.values()}
    names = {path.name for path in expected.iterdir()} - told
    assert "chat_template.jinja" in names
    for name in names:
        assert (place / "fused" / name).read_bytes() == (expected / name).read_bytes(), name


def test_rows_of_a_result_stay_where_they_are(place: Place) -> None:
    write_models(place)
    documents = [
        stage("passthrough", "b", name="one", scale=0.5),
        {**stage("linear", "a", "one", weight=0.5), "tokenizer_source": "union"},
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.rc == 2
    assert "would be taken from a stage's result" in done.error["message"]
    assert "Run the stages it uses (one) on their own" in done.error["message"]


def test_vocabularies_that_differ_in_a_stage_name_it(place: Place) -> None:
    write_models(place)
    documents = [
        stage("linear", "a", "b", name="one", weight=0.5),
        stage("slerp", "one", base="base", t=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    assert done.error["message"].startswith("stage one: the sources differ in their vocabulary: a ")


def test_a_result_has_the_tokens_of_its_donor(place: Place) -> None:
    write_models(place)
    documents = [
        stage("passthrough", "a", name="one", scale=0.5),
        stage("linear", "one", "b", weight=0.5),
    ]
    done = place.run("plan", fused(place, documents), "--json")

    message = done.error["message"]
    assert message.startswith("the sources differ in their vocabulary: one 13 tokens in 13 rows")


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
def test_the_plan_says_what_any_method_inside_reads(gridded: Place, method: str) -> None:
    outer = stage("ties", "one", "c", base="base", weight=0.6, density=0.4, rescale="l1")
    recipe = fused(gridded, [inner(method), outer])
    call: dict[str, Any] = {"engine": "local", "device": "cpu", "workers": 1, "tile_elements": 256}
    plan = raymerge.plan(recipe, **call)
    result = raymerge.merge(recipe, gridded / "counted", overwrite=True, **call)

    assert result.bytes_read == plan.bytes_read
