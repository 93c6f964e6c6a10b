"""What `raymerge plan` prints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.methods.registry import KnobValue
from raymerge.plan.build import Plan
from raymerge.plan.explain import explain, format_value
from raymerge.units import format_bytes
from tests.plans import GIB, HEAD, MODEL, NORM, TIED, UP, catalog, plan, recipe

SAYS_TIED, SAYS_UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
KNOBS = {"weight": 0.5, "density": 0.25}
SHARED = "normalize true, rescale false, lambda 1, trim tensor"


def three_way(**top: Any) -> Plan:
    merge = recipe("ties", "math", "code", base="base", **{"parameters": KNOBS, **top})
    return plan(merge)


def section(text: str, title: str) -> list[str]:
    """The lines under a title, without it."""
    found = []
    inside = False
    for line in text.splitlines():
        inside = line.startswith(title) or (inside and line.startswith(" "))
        if inside:
            found.append(line[9:])
    return found


def test_a_plan_in_full() -> None:
    made = three_way(keep=[NORM], drop=[HEAD])
    memory = made.memory
    host = format_bytes(memory.projected_host_bytes)

    assert explain(made).splitlines() == [
        "recipe   r.yaml",
        "method   ties (arXiv:2306.01708), 2 sources and a base, bfloat16 -> bfloat16, seed 0",
        "sources  base  6.0 KiB  base, donor  /models/base",
        "         math  6.0 KiB               /models/math",
        "         code  6.0 KiB               /models/code",
        "tensors  4, 2,576 parameters: 3 merged, 0 copied, 1 kept, 1 dropped",
        f"         3  ties          histogram delta  weight 0.5, density 0.25, {SHARED}",
        "         1  copied: keep  copy",
        "         dropped: lm_head.weight",
        "passes   1 tensors once, 3 several times from memory, 0 several times from their files",
        "reads    15.0 KiB",
        "writes   5.4 KiB",
        "shards   1, the largest 5.4 KiB: model-00001-of-00001.safetensors",
        "units    1, the largest 5.4 KiB",
        f"peak     {host} of 4.0 GiB, 2 threads, tiles of 262,144 elements",
        "tie      lm_head.weight is not written: the recipe drops it",
        f"digest   {made.digest}",
    ]


def test_many_layers_of_a_gradient_are_one_row_with_ranges() -> None:
    layers = {f"model.layers.{i}.w": MODEL[NORM] for i in range(80)}
    knobs = {"weight": 0.5, "density": [0.25, 0.75]}
    merge = recipe("ties", "a", "b", base="base", parameters=knobs)
    text = explain(plan(merge, [catalog(label, layers) for label in ("base", "a", "b")]))

    rows = section(text, "tensors")
    assert len(rows) == 2
    assert rows[1].startswith("80  ties  histogram delta  weight 0.5, density 0.25..0.75")
    assert len(text.splitlines()) <= 30


def test_a_few_settings_are_a_row_each_the_commonest_first() -> None:
    weight = [{"filter": "mlp", "value": 0.25}, {"value": 0.5}]
    rows = section(explain(three_way(parameters={"weight": weight})), "tensors")

    assert [row.split(",")[0] for row in rows[1:]] == [
        "3  ties  delta  weight 0.5",
        "2  ties  delta  weight 0.25",
    ]


@pytest.mark.parametrize(
    ("catalogs", "says"),
    [
        ([catalog("a"), catalog("b")], ["untied: lm_head.weight is a tensor of its own"]),
        ([catalog("a", TIED), catalog("b", TIED)], ["no source has an output head beside its"]),
        (
            [catalog("a", config=SAYS_TIED), catalog("b", TIED)],
            [
                "tied: lm_head.weight is model.embed_tokens.weight and is not written",
                "has to equal model.embed_tokens.weight in a, whose config says tied",
            ],
        ),
        (
            [catalog("a", config=SAYS_UNTIED), catalog("b", TIED)],
            [
                "untied: lm_head.weight is a tensor of its own",
                "model.embed_tokens.weight is read in its place from b",
            ],
        ),
    ],
)
def test_the_tie_policy_is_put_in_words(catalogs: list[Any], says: list[str]) -> None:
    lines = section(explain(plan(recipe("linear", "a", "b"), catalogs)), "tie")

    assert len(lines) == len(says)
    assert all(line.startswith(words) for line, words in zip(lines, says, strict=True))


def test_every_note_has_its_line() -> None:
    wide = {name: (DType.F32, shape) for name, (_, shape) in MODEL.items()}
    merge = recipe("linear", "a", "b", dtype="bfloat16", parameters={"density": 0.5})
    made = plan(merge, [catalog("a", wide), catalog("b")])

    assert section(explain(made), "notes") == list(made.notes)
    assert len(made.notes) == 2
    assert "bfloat16, float32 -> bfloat16" in explain(made)


def test_a_survey_and_what_is_read_again_are_announced() -> None:
    huge = {UP: (DType.BF16, (2**15, 2**16))}
    merge = recipe("ties", "a", base="b", parameters={**KNOBS, "rescale": "l1", "trim": "model"})
    lines = section(explain(plan(merge, [catalog("b", huge), catalog("a", huge)])), "passes")

    assert lines[0].endswith("1 several times from their files (8.0 GiB more)")
    assert lines[1] == "before the merge a survey of the whole model, 3 sweeps"


@settings(deadline=None)
@given(threads=st.integers(1, 8), memory=st.integers(1, 64), drop=st.booleans())
def test_columns_keep_their_place_and_lines_carry_no_trailing_space(
    threads: int, memory: int, *, drop: bool
) -> None:
    merge = recipe("ties", "a", "b", base="base", **({"drop": NORM} if drop else {}))
    text = explain(plan(merge, threads=threads, memory_bytes=memory * GIB))

    assert text == explain(plan(merge, threads=threads, memory_bytes=memory * GIB))
    for line in text.splitlines():
        assert line == line.rstrip()
        assert line[8] == " " != line[9]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (1.0, "1"), (1 / 3, "0.333333"), (2, "2"), ("l1", "l1"), (1e-9, "1e-09")],
)
def test_values_read_as_a_recipe_writes_them(value: KnobValue, text: str) -> None:
    assert format_value(value) == text
