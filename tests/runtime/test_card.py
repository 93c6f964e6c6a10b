"""The model card."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from raymerge.checkpoint.dtypes import DType
from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.recipe import loads
from raymerge.runtime.card import hub_id, model_card
from tests.plans import MODEL, NORM, catalog, plan, recipe


def source(location: str, revision: str | None = None) -> PlannedSource:
    return PlannedSource(
        label="a", location=location, revision=revision, pins={}, side_files=(), tensor_bytes=0
    )


@pytest.mark.parametrize(
    ("location", "revision", "expected"),
    [
        ("hf://org/name", None, "org/name"),
        ("hf://org/name@main", "abc", "org/name"),
        ("/srv/cache/huggingface/hub/models--org--my--name/snapshots/0af1", None, "org/my--name"),
        ("org/name", "v1.0", "org/name"),
        ("org/name", None, None),  # as likely a folder
        ("models/llama-3", None, None),
        ("/models/org/name", None, None),
        ("../org/name", "main", None),
        ("./name", "main", None),
        ("s3://bucket/name", "v1", None),
    ],
)
def test_only_what_surely_came_from_the_hub_is_called_so(
    location: str, revision: str | None, expected: str | None
) -> None:
    assert hub_id(source(location, revision)) == expected


def card_of(made: Plan, *, on_hub: bool = False) -> tuple[dict[str, Any], str]:
    text = model_card(made, on_hub=on_hub).decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_names_every_source_by_hub_id_or_label() -> None:
    merge = recipe("ties", "math", "code", base="base")
    catalogs = [
        catalog("base", location="hf://org/base", side_files=["config.json"]),
        catalog("math", location="/secret/place/math"),
        catalog("code", location="hf://org/code@main"),
    ]
    front, body = card_of(plan(merge, catalogs))

    assert front == {
        "base_model": ["org/base", "math", "org/code"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "raymerge", "ties"],
    }
    assert "/secret" not in body
    assert "| math |" in body


def test_without_a_hub_model_the_front_matter_has_labels() -> None:
    front, _ = card_of(plan(recipe("linear", "a", "b")))

    assert front == {
        "base_model": ["a", "b"],
        "base_model_relation": "merge",
        "tags": ["merge", "raymerge", "linear"],
    }


def test_on_the_hub_the_front_matter_has_its_own_ids_alone() -> None:
    catalogs = [catalog("a", location="hf://org/a@" + "1" * 40), catalog("b")]
    front, body = card_of(plan(recipe("linear", "a", "b"), catalogs), on_hub=True)
    assert front["base_model"] == ["org/a"]
    assert f"| org/a | {'1' * 40} |" in body

    front, _ = card_of(plan(recipe("linear", "a", "b")), on_hub=True)
    assert front == {"tags": ["merge", "raymerge", "linear"]}


def test_a_model_that_takes_part_twice_is_named_once() -> None:
    catalogs = [catalog("a", location="hf://org/a"), catalog("b", location="hf://org/a@v2")]
    front, _ = card_of(plan(recipe("linear", "a", "b"), catalogs))

    assert front["base_model"] == ["org/a"]


def test_the_card_says_who_took_part_and_with_what() -> None:
    layers = {f"model.layers.{i}.w": MODEL[NORM] for i in range(4)}
    models = [{"model": "math", "parameters": {"weight": 0.25}}, "code"]
    knobs = {"weight": 0.5, "density": [0.25, 0.75]}
    merge = recipe("ties", base="base", models=models, parameters=knobs, seed=7, dtype="float32")
    made = plan(merge, [catalog(label, layers) for label in ("base", "math", "code")])
    _, body = card_of(made)

    assert "# Merge of base, math and code\n" in body
    assert "**ties** ([arXiv:2306.01708](https://arxiv.org/abs/2306.01708)): Merge task" in body
    assert "| base | base, config and tokenizer |  |  |  |  |\n" in body
    assert "| math |  |  |  | 0.25 | 0.25..0.75 |\n" in body
    assert "| code |  |  |  | 0.5 | 0.25..0.75 |\n" in body
    assert "`lambda: 1`, `trim: tensor`, `dtype: float32`, `seed: 7`." in body
    assert made.digest in body
    assert "--seed 7" in body


def test_the_recipe_stands_in_the_card_as_it_was_written() -> None:
    text = "# ```tricky```\nmerge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
    body = model_card(plan(loads(text))).decode()

    assert f"````yaml\n{text}````\n" in body


def test_a_label_cannot_break_the_table() -> None:
    models = [{"model": "a", "label": "one | two\nthree"}, "b"]
    made = plan(recipe("linear", "a", "b", models=models))
    _, body = card_of(made)

    assert "| one \\| two three | config and tokenizer |  |  | 1 |\n" in body


def test_a_card_of_copies_has_a_table_too() -> None:
    integers = catalog("a", {"w": (DType.I64, (4,))})
    _, body = card_of(plan(recipe("passthrough", "a"), [integers]))

    assert "| a | config and tokenizer |  |  |\n" in body
    assert "# Merge of" not in body


def test_a_card_is_the_same_every_time() -> None:
    made = plan(recipe("ties", "a", "b", base="base"))

    assert model_card(made) == model_card(made)
