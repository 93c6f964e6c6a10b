"""Same recipe, same bytes: whatever the workers, the tiles, and where the sources lie.

`tests/golden/shards.json` holds the sha256 of every method's output over checkpoints made of
integers, so that no library's random numbers are in it. After a change of the numeric contract,
and only then, write it anew and say in the commit why bytes changed:

    python -m tests.e2e.test_same_bytes
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import raymerge
from tests.checkpoints import fine_tune, tiny_llama_tensors
from tests.conftest import METHOD_KNOBS, Place, raw, read_tensors, shard_hashes

GOLDEN = Path(__file__).parents[1] / "golden" / "shards.json"
SHARD_BYTES = 40_000
CASES: dict[str, tuple[str, dict[str, object]]] = {
    **{method: (method, {}) for method in METHOD_KNOBS},
    "ties, trim: model": ("ties", {"trim": "model"}),
    "ties, float16": ("ties", {"dtype": "float16"}),
    "dare_ties, seed 5": ("dare_ties", {"seed": 5}),
    "nuslerp, columns": (
        "nuslerp",
        {"parameters": {"weight": 0.6, "nuslerp_flatten": False, "nuslerp_row_wise": True}},
    ),
}
EACH_CASE = pytest.mark.parametrize("case", CASES)


def integers(seed: int, scale: float, *shape: int) -> Tensor:
    """Multiples of `scale` / 2**11, the same on every machine: raw words of PCG64."""
    words = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    numbers = (words >> np.uint64(52)).astype(np.int64) - 2**11
    return torch.from_numpy((numbers * (scale / 2**11)).astype(np.float32).reshape(shape))


def golden_models(place: Place) -> None:
    """`base`, `a` and `b`: bfloat16 with a float32 tensor, of several units' and blocks' sizes."""
    shapes = {
        "embed.weight": (70, 65),
        "layers.0.w": (128, 100),
        "layers.1.w": (3, 5, 7),
        "n": (9,),
    }
    for seed, name in enumerate(("base", "a", "b")):
        tensors = {}
        for position, (tensor, shape) in enumerate(shapes.items()):
            values = integers(position, 0.5, *shape)
            if seed:
                values = values + integers(100 * seed + position, 2**-6, *shape)
            tensors[tensor] = values if tensor == "n" else values.to(torch.bfloat16)
        place.model(name, tensors)


def digests(place: Place) -> dict[str, dict[str, str]]:
    """Shard hashes of every case."""
    golden_models(place)
    found = {}
    for number, (case, (method, top)) in enumerate(CASES.items()):
        out = place / f"out-{number}"
        raymerge.merge(
            place.any_recipe(method, **top), out, engine="local", device="cpu", workers=1,
            shard_bytes=20_000,
        )  # fmt: skip
        found[case] = shard_hashes(out)
    return found


def test_bytes_are_those_of_the_golden_file(place: Place) -> None:
    assert digests(place) == json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Sources with more than three reduction blocks and with rows, which tiles cut anywhere."""
    place = Place(tmp_path_factory.mktemp("sources"))
    base = tiny_llama_tensors(0)
    generator = torch.Generator().manual_seed(9)
    # Rows of an odd length, which methods that need them whole cannot cut at 256 elements.
    base["large.weight"] = torch.randn((4039, 779), generator=generator).to(torch.bfloat16)
    base["rows.weight"] = torch.randn((40, 1031), generator=generator).to(torch.bfloat16)
    for name, tensors in (("base", base), ("a", fine_tune(base, 1)), ("b", fine_tune(base, 2))):
        place.model(name, tensors)
    return place


@pytest.fixture(scope="module")
def references(sources: Place) -> dict[str, dict[str, str]]:
    """The hashes of one worker with tiles of its own choice."""
    found = {}
    for number, (case, (method, top)) in enumerate(CASES.items()):
        out = sources / f"reference-{number}"
        raymerge.merge(
            sources.any_recipe(method, **top), out, engine="local", device="cpu", workers=1,
            shard_bytes=SHARD_BYTES,
        )  # fmt: skip
        found[case] = shard_hashes(out)
    return found


@EACH_CASE
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tile_elements", [2**14, 256 * 1001, 2**22])
def test_neither_workers_nor_tiles_change_a_byte(  # noqa: PLR0917 - all combinations
    sources: Place,
    references: dict[str, dict[str, str]],
    tmp_path: Path,
    case: str,
    workers: int,
    tile_elements: int,
) -> None:
    method, top = CASES[case]
    result = raymerge.merge(
        sources.any_recipe(method, **top),
        tmp_path / "out",
        engine="local",
        device="cpu",
        workers=workers,
        tile_elements=tile_elements,
        shard_bytes=SHARD_BYTES,
    )

    assert shard_hashes(tmp_path / "out") == references[case]
    assert {shard.name: shard.sha256 for shard in result.shards} == references[case]
    assert len(references[case]) > 1


@EACH_CASE
def test_reading_again_what_does_not_fit_changes_no_byte(
    sources: Place, references: dict[str, dict[str, str]], tmp_path: Path, case: str
) -> None:
    method, top = CASES[case]
    recipe = sources.any_recipe(method, **top)
    call = {"engine": "local", "device": "cpu", "workers": 1, "tile_elements": 2**14}
    plan = raymerge.plan(recipe, memory_bytes=274 * 2**20, **call)  # type: ignore[arg-type]
    passes = max(len(node.step.passes) for node in plan.nodes)
    assert (plan.memory.reread_tensors > 0) == (passes > 1)

    raymerge.merge(
        recipe, tmp_path / "out", memory_bytes=274 * 2**20, shard_bytes=SHARD_BYTES, **call  # type: ignore[arg-type]
    )  # fmt: skip
    assert shard_hashes(tmp_path / "out") == references[case]


# --- where sources lie, and in which order they are named ----------------------------------------


def moved(place: Place, path: str) -> Iterator[tuple[str, Path]]:
    for name in ("base", "a", "b"):
        target = place / path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / name).rename(target)
        yield name, target


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_a_moved_source_drops_the_same_entries(place: Place, method: str) -> None:
    place.llamas()
    place.merged(place.any_recipe(method), "before")
    for _ in moved(place, "elsewhere/and deeper"):
        pass
    away = Place(place / "elsewhere" / "and deeper")
    away.merged(away.any_recipe(method), "after")

    assert shard_hashes(place / "before") == shard_hashes(away / "after")


def test_a_label_stands_for_a_folder_s_name(place: Place) -> None:
    place.llamas()
    place.merged(place.any_recipe("dare_linear"), "before")
    (place / "a").rename(place / "another name")
    text = place.any_recipe("dare_linear").read_text()
    text = text.replace(str(place / "a"), f"{place / 'another name'}\n  label: a", 1)
    (place / "labelled.yaml").write_text(text)
    place.merged(place / "labelled.yaml", "after")

    assert shard_hashes(place / "before") == shard_hashes(place / "after")


def changed(tensors: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: (tensors[name] != base[name]).numpy().tobytes() for name in base}


def test_a_source_s_draws_depend_on_no_other_source(place: Place) -> None:
    """Weights of 0 take the other sources' deltas away and leave the draws of one to be seen."""
    base = {name: t.float() for name, t in place.llamas(3).items()}
    knobs = {"density": 0.3}
    masks = []
    for number, order in enumerate((["a", "b", "c"], ["c", "b", "a"], ["b", "a"], ["a"])):
        own = {name: {"weight": float(name == "a")} for name in order}
        recipe = place.recipe("dare_linear", own, base="base", parameters=knobs, dtype="float32")
        masks.append(changed(place.merged(recipe, f"{number}"), base))

    assert masks[1:] == masks[:1] * 3
    share = np.mean([np.frombuffer(mask, np.bool_).mean() for mask in masks[0].values()])
    assert 0.1 < share < 0.3


def test_sources_and_tensors_draw_apart_and_the_seed_counts(place: Place) -> None:
    base = {name: t.float() for name, t in place.llamas(2).items()}
    found = {}
    for case, source, seed in (("a", "a", 0), ("b", "b", 0), ("a, seed 1", "a", 1)):
        own = {"a": {"weight": float(source == "a")}, "b": {"weight": float(source == "b")}}
        recipe = place.recipe(
            "dare_linear", own, base="base", parameters={"density": 0.5}, dtype="float32"
        )
        found[case] = changed(place.merged(recipe, f"out {case}", "--seed", seed), base)
    name = "model.layers.0.mlp.up_proj.weight"
    other = "model.layers.0.mlp.gate_proj.weight"

    drawn = [found["a"][name], found["b"][name], found["a, seed 1"][name], found["a"][other]]
    assert len(set(drawn)) == 4


def test_shards_cut_the_same_bytes_elsewhere(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("dare_ties")
    whole = place.merged(recipe, "whole")
    cut = place.merged(recipe, "cut", "--shard-size", "3kB")

    assert len(list((place / "whole").glob("*.safetensors"))) == 1
    assert len(list((place / "cut").glob("*.safetensors"))) > 5
    assert {n: raw(t) for n, t in whole.items()} == {n: raw(t) for n, t in cut.items()}
    assert read_tensors(place / "cut").keys() == whole.keys()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(digests(Place(Path(folder))), indent=2) + "\n")
    sys.stdout.write(f"wrote {GOLDEN}\n")
