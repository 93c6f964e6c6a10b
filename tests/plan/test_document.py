"""`raymerge plan --json`: complete, stable, and made in seconds for the largest models."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from typing import Any

from raymerge.checkpoint.dtypes import DType
from raymerge.plan import document
from raymerge.plan.build import Plan
from raymerge.plan.document import as_json
from tests.plans import EMBEDDING, GIB, HEAD, MODEL, NORM, TIED, catalog, plan, recipe

MIXED = {**MODEL, NORM: (DType.I64, (16,))}


def example(**options: Any) -> Plan:
    knobs = {"weight": [0.25, 0.5], "density": 0.5}
    catalogs = [catalog("base", MIXED), catalog("a", MIXED), catalog("b", MIXED)]
    merge = recipe("ties", "a", "b", base="base", parameters=knobs, seed=2**64 - 1)
    return plan(merge, catalogs, **options)


def documented(section: str) -> list[str]:
    """The keys of a section that the module's docstring lists, in its order."""
    listing = (document.__doc__ or "").split("\n\n")[2]
    blocks = {block.split()[0]: block for block in re.split(r"\n(?= {4}\w)", listing)}
    keys = " ".join(blocks[section].split()[1:])
    # Beyond the names: remarks in brackets, what follows a semicolon, the keys of a list's items.
    plain = re.sub(r"\([^)]*\)|;.*|:.*", "", keys)
    return [name.strip() for name in plain.split(",")]


def test_a_document_survives_json() -> None:
    made = as_json(example())

    assert json.loads(json.dumps(made)) == made


def test_the_sections_come_in_the_documented_order() -> None:
    assert list(as_json(example())) == [
        "digest",
        "method",
        "recipe",
        "seed",
        "nan",
        "sources",
        "stages",
        "steps",
        "tensors",
        "shards",
        "units",
        "stats",
        "results",
        "memory",
        "totals",
        "vocabulary",
        "chat_template",
        "tie",
        "stacks",
        "config",
        "dropped",
        "notes",
    ]


def test_the_keys_of_every_section_are_the_documented_ones() -> None:
    made = as_json(example())

    for section in ("sources", "tensors", "shards", "units"):
        assert list(made[section][0]) == documented(section)
    for section in ("results", "memory", "totals", "tie"):
        assert list(made[section]) == documented(section)


def test_every_tensor_points_at_its_step_its_bytes_and_its_shard() -> None:
    planned = example(shard_bytes=2000)
    made = as_json(planned)

    assert len(made["tensors"]) == len(planned.nodes)
    for node, tensor in zip(planned.nodes, made["tensors"], strict=True):
        assert made["steps"][tensor["step"]]["passes"] == list(node.step.passes)
        assert [each["source"] for each in tensor["inputs"]] == [0, 1, 2]
        for read, each in zip(node.inputs, tensor["inputs"], strict=True):
            entry = read.reads[0].entry
            assert (each["start"], each["stop"]) == (entry.start, entry.stop)
            assert each["file"] in {f["name"] for f in made["sources"][read.source]["files"]}
        assert tensor["stop"] - tensor["start"] == node.slot.nbytes
    inside = Counter(tensor["shard"] for tensor in made["tensors"])
    assert inside == {shard["name"]: shard["tensors"] for shard in made["shards"]}


def test_units_hold_every_tensor_once_and_sum_up_what_they_read() -> None:
    made = as_json(example(shard_bytes=2000))

    inside = [name for unit in made["units"] for name in unit["tensors"]]
    assert inside == [tensor["name"] for tensor in made["tensors"]]
    read = sum(each["stop"] - each["start"] for t in made["tensors"] for each in t["inputs"])
    assert sum(unit["read_bytes"] for unit in made["units"]) == read


def test_steps_are_listed_once_with_their_knobs_and_counts() -> None:
    steps = as_json(example())["steps"]

    assert sum(step["tensors"] for step in steps) == len(MIXED)
    assert [step["index"] for step in steps] == list(range(len(steps)))
    copied = next(step for step in steps if step["kind"] == "copy")
    assert (copied["reason"], copied["knobs"]) == ("not a floating-point tensor", {})
    weights = sorted(step["knobs"]["weight"] for step in steps if step["kind"] == "delta")
    assert weights == [[0.25, 0.25], [0.5, 0.5]]


def test_coefficients_of_a_span_are_there_unless_the_run_decides_them() -> None:
    averaged = as_json(plan(recipe("linear", "a", "b")))["steps"]
    rotated = as_json(plan(recipe("slerp", "a", base="b", parameters={"t": 0.5})))["steps"]

    assert [step["coefficients"] for step in averaged] == [[0.5, 0.5]]
    assert [step["coefficients"] for step in rotated] == [None]


def test_a_span_says_what_its_angles_are_taken_over() -> None:
    merge = recipe("nuslerp", "a", "b", parameters={"nuslerp_flatten": False})

    assert [step["group"] for step in as_json(plan(merge))["steps"]] == ["row"]


def test_a_read_under_another_name_says_so() -> None:
    catalogs = [
        catalog("a", config={"tie_word_embeddings": False}),
        catalog("b", TIED, config={"tie_word_embeddings": True}),
    ]
    made = as_json(plan(recipe("linear", "a", "b"), catalogs))

    head = next(tensor for tensor in made["tensors"] if tensor["name"] == HEAD)
    assert [each.get("tensor") for each in head["inputs"]] == [None, EMBEDDING]
    assert made["tie"]["stand_ins"] == ["b"]
    assert as_json(plan(recipe("passthrough", "b"), [catalogs[1]]))["tie"] is None


def test_the_donor_is_marked() -> None:
    assert [source["donor"] for source in as_json(example())["sources"]] == [True, False, False]


def test_figures_are_the_plans() -> None:
    planned = example()
    made = as_json(planned)

    assert made["digest"] == planned.digest
    assert made["totals"] == {
        "tensors": len(planned.nodes),
        "parameters": planned.parameters,
        "bytes_read": planned.bytes_read,
        "bytes_written": planned.bytes_written,
    }
    assert made["memory"]["projected_host_bytes"] == planned.memory.projected_host_bytes
    assert made["seed"] == 2**64 - 1


def test_30_000_tensors_of_four_sources_are_dumped_in_seconds() -> None:
    experts = {
        f"model.layers.{i // 400}.mlp.experts.{i % 400}.up_proj.weight": (DType.BF16, (2048, 768))
        for i in range(30_000)
    }
    merge = recipe("ties", "a", "b", "c", base="base", parameters={"weight": [0.1, 0.9]})
    catalogs = [catalog(label, experts) for label in ("base", "a", "b", "c")]
    planned = plan(merge, catalogs, memory_bytes=16 * GIB)

    began = time.process_time()
    text = json.dumps(as_json(planned))
    cpu_s = time.process_time() - began

    assert cpu_s < 5
    assert len(text) < 1000 * len(planned.nodes)
