"""What is refused: with which exit code, in which words, and with nothing written."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors, write_index
from tests.conftest import METHOD_KNOBS, Done, Place, raw, shard_hashes

INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"


def untouched(place: Place) -> bool:
    """Whether `out` is not there at all."""
    return not (place / "out").exists()


def no_output(place: Place) -> bool:
    """Whether `out` holds no output byte that a reader would take for one."""
    return not list((place / "out").glob("[!.]*"))


def listed_as_json(done: Done) -> bool:
    fields = {"type", "message", "source", "tensor", "file", "retryable"}
    return set(done.json) == {"error"} and set(done.error) == fields


# --- the recipe ----------------------------------------------------------------------------------

RECIPE = """\
merge_method: {method}
base_model: {base}
models:
  - model: {a}
    parameters:
      weight: {weight}
  - model: {b}
    parameters:
      {key}: {value}
parameters:
  density: {density}
  weight: 0.5
"""
GOOD = {"method": "ties", "key": "weight", "value": "1", "weight": "0.4", "density": "0.5"}
BAD_RECIPES: list[tuple[str, dict[str, str], int, str]] = [
    ("a typo in a knob", {"key": "wieght"}, 9, "Did you mean 'weight'?"),
    ("a density of 20", {"density": "20"}, 11, "For 20% write 0.2."),
    ("a weight that is a word", {"weight": "a"}, 6, "allowed: a number"),
    ("a quoted number", {"weight": '"0.4"'}, 6, "Write 0.4 without quotes."),
    ("a method that is not there", {"method": "tise"}, 1, "Did you mean 'ties'?"),
    ("a method of mergekit's alone", {"method": "model_breadcrumbs_x"}, 1, "there is no method"),
    ("a gradient of strings", {"weight": "[a, b]"}, 6, "allowed: a number"),
    ("a density below 0", {"density": "-0.1"}, 11, "from 0 to 1"),
    ("a weight that is no number", {"weight": ".nan"}, 6, "finite"),
    ("an empty gradient", {"weight": "[]"}, 6, "empty list"),
    ("a condition's typo", {"weight": "{{valeu: 1}}"}, 6, "Did you mean 'value'?"),
    ("a knob of another method", {"key": "t"}, 9, "slerp"),
]


@pytest.mark.parametrize(
    ("change", "line", "hint"), [case[1:] for case in BAD_RECIPES], ids=[c[0] for c in BAD_RECIPES]
)
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_a_wrong_recipe_is_refused_with_file_line_and_what_to_write(
    place: Place, command: str, change: dict[str, str], line: int, hint: str
) -> None:
    place.llamas()
    if change.get("key") == "t":
        # mergekit has `t` for some method, so it is let pass and listed; `trim` is ours alone.
        change, hint, line = {"method": "linear", "key": "trim"}, "ties", 9
    folders = {name: str(place / name) for name in ("base", "a", "b")}
    change = {key: text.format() for key, text in change.items()}
    recipe = place / "bad.yaml"
    recipe.write_text(RECIPE.format(**{**GOOD, **folders, **change}))
    out = [place / "out"] if command == "merge" else []
    done = place.run(command, recipe, *out, "--json")

    assert (done.rc, done.error["type"]) == (2, "RecipeError")
    assert f"{recipe}:{line}: " in done.error["message"]
    assert hint in done.error["message"]
    assert done.error["file"] == str(recipe)
    assert listed_as_json(done)
    assert untouched(place)


def test_a_good_recipe_of_that_table_is_not_refused(place: Place) -> None:
    place.llamas()
    folders = {name: str(place / name) for name in ("base", "a", "b")}
    (place / "good.yaml").write_text(RECIPE.format(**GOOD, **folders))

    assert place.run("plan", place / "good.yaml").rc == 0


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        ("a: [", "not YAML"),
        ("merge_method: ties\nmodels: []\n", "models: missing"),
        ("merge_method: linear\nmodels: [x]\nparameters: {weight: 1}\nmerge: 1\n", "no such key"),
        ("merge_method: linear\nmodels: [x]\n", "weight: missing"),
        ("merge_method: linear\nmodels: [x, x]\nparameters: {weight: 1}\n", "listed twice"),
    ],
    ids=["empty", "not YAML", "no models", "unknown key", "no weight", "one model twice"],
)
def test_a_broken_recipe_is_refused(place: Place, text: str, hint: str) -> None:
    (place / "bad.yaml").write_text(text)
    done = place.run("merge", place / "bad.yaml", place / "out")

    assert (done.rc, done.out) == (2, "")
    assert hint in done.err
    assert untouched(place)


# --- sources that do not fit ---------------------------------------------------------------------


def with_extra(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """More tensors than the others have."""
    return tensors | {f"extra.{i}.weight": torch.ones(3) for i in range(number)}


def test_a_source_with_tensors_more_names_the_first_three_and_what_to_write(place: Place) -> None:
    base = place.llamas()
    place.model("b", with_extra(base, 5), config=llama_config(base))
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["type"]) == (2, "PlanError")
    message = done.error["message"]
    assert "lacks 5 tensors" in message
    assert "extra.0.weight, extra.1.weight, extra.2.weight and 2 more" in message
    assert "`drop:`" in message
    assert "extra.3" not in message
    assert untouched(place)

    found = place.merged(place.any_recipe("ties", drop=["extra.*"]))
    assert found.keys() == base.keys()


def test_a_source_that_lacks_a_tensor_can_be_kept_or_dropped(place: Place) -> None:
    base = place.llamas()
    lacking = {name: tensor for name, tensor in base.items() if name != UP}
    place.model("b", lacking, config=llama_config(base))
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["source"], done.error["tensor"]) == (2, "b", UP)
    assert "`keep:`" in done.error["message"]
    assert untouched(place)
    assert raw(place.merged(place.any_recipe("ties", keep=[UP]), "kept")[UP]) == raw(base[UP])
    assert UP not in place.merged(place.any_recipe("ties", drop=[UP]), "dropped")


def test_sources_of_different_shape_are_refused_with_both_shapes(place: Place) -> None:
    base = place.llamas()
    place.model("b", base | {UP: torch.zeros(5, 16, dtype=torch.bfloat16)})
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["tensor"]) == (2, UP)
    for words in ("[32, 16]", "[5, 16]", "drop:", "keep:"):
        assert words in done.error["message"]
    assert untouched(place)


def test_a_pattern_that_covers_nothing_is_refused(place: Place) -> None:
    place.llamas()
    done = place.merge(place.any_recipe("ties", drop=["*.mpl.*"]))

    assert done.rc == 2
    assert "no tensor of any source matches '*.mpl.*'" in done.err


QUANTISED: dict[
    str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any], str]
] = {
    "FP8": (lambda t: t | {UP: t[UP].to(torch.float8_e4m3fn)}, {}, "F8_E4M3"),
    "GPTQ": (
        lambda t: t | {"l.qweight": torch.zeros(4, dtype=torch.int32), "l.g_idx": torch.zeros(4)},
        {"quantization_config": {"quant_method": "gptq"}},
        "GPTQ",
    ),
    "AWQ": (
        lambda t: t | {"l.qweight": torch.zeros(4, dtype=torch.int32), "l.qzeros": torch.zeros(4)},
        {"quantization_config": {"quant_method": "awq"}},
        "AWQ",
    ),
    "bitsandbytes": (
        lambda t: t | {"l.absmax": torch.zeros(4), "l.quant_map": torch.zeros(16)},
        {},
        "bitsandbytes",
    ),
}


@pytest.mark.parametrize("scheme", QUANTISED)
def test_a_quantised_source_is_refused_by_the_name_of_its_scheme(place: Place, scheme: str) -> None:
    base = place.llamas()
    change, config, name = QUANTISED[scheme]
    place.model("b", change(base), config={**llama_config(base), **config})
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["type"], done.error["source"]) == (2, "PlanError", "b")
    assert name in done.error["message"]
    assert untouched(place)


# --- weights that cannot be divided by -----------------------------------------------------------


CANCELLING: list[tuple[str, list[float], dict[str, Any], str]] = [
    ("linear", [0.5, -0.5], {}, "0.5 (a), -0.5 (b)"),
    ("linear", [0.0, 0.0], {}, "all 0"),
    ("task_arithmetic", [1.0, -1.0], {"normalize": True}, "1 (a), -1 (b)"),
    ("ties", [0.7, 0.3, -0.3], {}, "0.3 (b), -0.3 (c)"),
    ("dare_linear", [0.2, 0.1, -0.3], {"normalize": True}, "-0.3 (c)"),
    ("dare_ties", [1.0, 2.0, -1.0], {"normalize": True}, "1 (a), -1 (c)"),
]


@pytest.mark.parametrize(("method", "weights", "knobs", "named"), CANCELLING, ids=str)
def test_weights_that_cancel_are_refused_and_named(
    place: Place, method: str, weights: list[float], knobs: dict[str, Any], named: str
) -> None:
    place.llamas(3)
    own = {name: {"weight": weight} for name, weight in zip("abc", weights, strict=False)}
    base = None if method == "linear" else "base"
    recipe = place.recipe(method, own, base=base, parameters=knobs)
    done = place.merge(recipe, "out", "--json")

    assert (done.rc, done.error["type"]) == (2, "PlanError")
    assert named in done.error["message"]
    assert "normalize" in done.error["message"]
    assert untouched(place)
    assert (
        place.merge(place.recipe(method, own, base=base, parameters={"normalize": False})).rc == 0
    )


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_weights_of_0_give_the_base_and_the_plan_says_so(
    place: Place, method: str, *, normalize: bool
) -> None:
    base = place.llamas()
    weight = [{"filter": "mlp", "value": 0.0}, {"value": 0.5}]
    recipe = place.any_recipe(method, parameters={"weight": weight, "normalize": normalize})
    plan = place.run("plan", recipe, "--json").json

    mlp = [name for name in base if "mlp" in name]
    (note,) = [note for note in plan["notes"] if "every weight is 0" in note]
    assert f"{len(mlp)} tensors" in note
    found = place.merged(recipe)
    for name in mlp:
        assert raw(found[name]) == raw(base[name])
    assert raw(found["model.norm.weight"]) != raw(base["model.norm.weight"])


# --- malformed sources ---------------------------------------------------------------------------


def rewrite_header(path: Path, change: Callable[[bytes], bytes]) -> None:
    stored = path.read_bytes()
    (length,) = struct.unpack("<Q", stored[:8])
    header = change(stored[8 : 8 + length])
    path.write_bytes(struct.pack("<Q", len(header)) + header + stored[8 + length :])


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def truncate(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(path.read_bytes()[:-10])


def remove(folder: Path) -> None:
    first_shard(folder).unlink()


def huge_header(folder: Path) -> None:
    path = first_shard(folder)
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def bad_json(folder: Path) -> None:
    rewrite_header(first_shard(folder), lambda header: b"\xff" + header[1:])


def deep_json(folder: Path) -> None:
    rewrite_header(first_shard(folder), lambda _: b'{"a":' + b"[" * 100_000)


def overlapping(folder: Path) -> None:
    def change(header: bytes) -> bytes:
        entries = json.loads(header)
        names = [name for name in entries if name != "__metadata__"]
        entries[names[1]] = entries[names[0]]
        return json.dumps(entries).encode()

    rewrite_header(first_shard(folder), change)


def empty(folder: Path) -> None:
    first_shard(folder).write_bytes(b"")


def lying_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    names = sorted(set(index.values()))
    write_index(folder, dict.fromkeys(index, names[-1]))


def index_names_a_stranger(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    write_index(folder, {**index, "ghost.weight": min(index.values())})


def index_leads_out(folder: Path) -> None:
    write_index(folder, {"w": "../../etc/passwd.safetensors"})


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


BREAKAGES: Mapping[Callable[[Path], None], str] = {
    truncate: "cut short",
    remove: "missing",
    huge_header: "model-00001",
    bad_json: "model-00001",
    deep_json: "model-00001",
    overlapping: "overlaps",
    empty: "model-00001",
    lying_index: INDEX,
    index_names_a_stranger: "ghost.weight",
    index_leads_out: INDEX,
    no_weights: "no .safetensors",
}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
@pytest.mark.parametrize("source", ["base", "b"])
def test_a_broken_source_is_refused_before_any_output(
    place: Place, breakage: Callable[[Path], None], source: str
) -> None:
    place.llamas()
    breakage(place / source)
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["type"]) == (3, "SourceError")
    assert done.error["source"] == source
    assert BREAKAGES[breakage] in done.error["message"]
    assert done.error["file"] or breakage is no_weights
    assert listed_as_json(done)
    assert untouched(place)


def test_an_absent_source_is_refused(place: Place) -> None:
    place.llamas(1)
    done = place.merge(place.any_recipe("ties"), "out", "--json")

    assert (done.rc, done.error["type"]) == (3, "SourceError")
    assert f"{place / 'b'} does not exist" in done.error["message"]
    assert untouched(place)


# --- NaN and Inf ---------------------------------------------------------------------------------


def test_probabilities_beyond_0_and_1_are_refused_while_planning(place: Place) -> None:
    place.llamas()
    knobs = {"weight": 1, "density": [{"filter": "mlp", "value": 0.9}, {"value": 0.5}]}
    done = place.merge(place.any_recipe("della", parameters=knobs), "out", "--json")

    assert (done.rc, done.error["type"]) == (2, "PlanError")
    assert done.error["tensor"].endswith("mlp.down_proj.weight")
    for part in ("density 0.9 and epsilon 0.15 of a", "`epsilon` of 0.1 or less"):
        assert part in done.error["message"]
    assert untouched(place)


@pytest.mark.parametrize("method", sorted(METHOD_KNOBS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_in_a_source_is_an_error_unless_the_recipe_lets_it_pass(
    place: Place, method: str, value: float
) -> None:
    base = place.llamas()
    source = "a"
    broken = fine_tune(base, 1)
    broken[UP].view(-1)[77] = value
    place.model(source, broken, config=llama_config(base))
    done = place.merge(place.any_recipe(method), "out", "--json")

    assert (done.rc, done.error["type"]) == (1, "NonFiniteError")
    assert (done.error["source"], done.error["tensor"]) == (source, UP)
    assert "element 77" in done.error["message"]
    assert "nan: pass" in done.error["message"]
    assert no_output(place)
    found = place.merged(place.any_recipe(method, nan="pass"), "passed")
    others = torch.ones(found[UP].numel(), dtype=torch.bool)
    others[77] = False
    assert found[UP].view(-1)[others].isfinite().all()
    assert found["model.norm.weight"].isfinite().all()


def test_a_nan_in_a_tensor_that_is_copied_or_of_weight_0_is_an_error_too(place: Place) -> None:
    base = place.llamas()
    broken = fine_tune(base, 1)
    broken[UP].view(-1)[0] = float("nan")
    place.model("a", broken, config=llama_config(base))
    copied = place.recipe("passthrough", ["a"])
    unused = place.recipe("linear", {"a": {"weight": 0}, "b": {"weight": 1}}, name="unused.yaml")

    for number, recipe in enumerate((copied, unused)):
        done = place.merge(recipe, f"out-{number}", "--json")
        assert (done.rc, done.error["tensor"]) == (1, UP)


def test_a_nan_in_what_is_kept_or_dropped_is_nobody_s_business(place: Place) -> None:
    base = place.llamas()
    base[UP].view(-1)[5] = float("nan")
    place.model("base", base, config=llama_config(base))

    assert raw(place.merged(place.any_recipe("ties", keep=[UP]))[UP]) == raw(base[UP])
    assert UP not in place.merged(place.any_recipe("ties", drop=[UP]), "dropped")


def test_a_result_beyond_the_output_s_range_is_an_error(place: Place) -> None:
    for name in ("base", "a", "b"):
        place.model(name, {"w": torch.tensor([1.0, 60_000.0])})
    recipe = place.recipe(
        "linear", parameters={"weight": 1.0, "normalize": False}, dtype="float16", nan="pass"
    )
    done = place.merge(recipe, "out", "--json")

    assert (done.rc, done.error["type"], done.error["tensor"]) == (1, "NonFiniteError", "w")
    assert "element 1" in done.error["message"]
    assert "float16" in done.error["message"]


# --- the destination -----------------------------------------------------------------------------


def test_a_finished_checkpoint_is_not_overwritten_unasked(place: Place) -> None:
    place.llamas()
    place.merged(place.any_recipe("ties"))
    before = sorted(path.name for path in (place / "out").iterdir())
    hashes = shard_hashes(place / "out")
    done = place.merge(place.any_recipe("linear"), "out", "--json")

    assert (done.rc, done.error["type"]) == (2, "ConflictError")
    assert "--overwrite" in done.error["message"]
    assert sorted(path.name for path in (place / "out").iterdir()) == before
    assert shard_hashes(place / "out") == hashes
    assert place.merge(place.any_recipe("linear"), "out", "--overwrite").rc == 0
    assert shard_hashes(place / "out") != hashes


def test_a_finished_merge_is_not_done_again(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    first = place.merge(recipe, "out", "--json", "--shard-size", "6kB").json
    stamps = {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()}
    second = place.merge(recipe, "out", "--json", "--shard-size", "6kB").json

    assert second["shards"] == first["shards"]
    assert (second["bytes_read"], second["bytes_written"], second["engine"]) == (0, 0, "none")
    assert second["resumed_units"] > 0
    assert {path: path.stat().st_mtime_ns for path in (place / "out").iterdir()} == stamps


def test_a_finished_merge_that_lost_a_shard_is_not_called_done(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    place.merged(recipe, "out", "--shard-size", "6kB")
    hashes = shard_hashes(place / "out")
    first_shard(place / "out").unlink()

    assert place.merge(recipe, "out", "--shard-size", "6kB").rc == 2
    assert place.merge(recipe, "out", "--shard-size", "6kB", "--overwrite").rc == 0
    assert shard_hashes(place / "out") == hashes


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("source", ["base", "a"])
def test_a_merge_into_one_of_its_sources_is_refused(
    place: Place, source: str, more: list[str]
) -> None:
    place.llamas()
    before = {path.name: path.read_bytes() for path in (place / source).iterdir()}
    done = place.merge(place.any_recipe("ties"), source, *more)

    assert done.rc == 2
    assert {path.name: path.read_bytes() for path in (place / source).iterdir()} == before


def test_a_budget_too_small_is_refused_with_numbers(place: Place) -> None:
    place.llamas()
    done = place.merge(place.any_recipe("ties"), "out", "--json", "--memory", "260MiB")

    assert (done.rc, done.error["type"]) == (2, "PlanError")
    for words in ("260.0 MiB", "2 threads", "--memory", "--workers"):
        assert words in done.error["message"]
    assert untouched(place)


def test_tiny_models_need_no_recipe_for_what_they_share() -> None:
    """The tables above stand on this: base and fine-tunes have the same names."""
    base = tiny_llama_tensors(0)
    assert fine_tune(base, 1).keys() == base.keys()
