"""How a plan shows the layers that slices stack."""

from __future__ import annotations

from raymerge.plan.document import as_json
from raymerge.plan.explain import explain
from tests.plan.test_explain import section
from tests.plan.test_stack import UP, planned, slices, take
from tests.plans import EMBEDDING, HEAD, NORM

BODY = slices([take("a", 0, 2)], [take("b", 1, 3)], [take("a", 4, 5)])


def test_each_slice_has_a_line_and_so_has_what_is_around_and_what_is_not_used() -> None:
    made = planned("passthrough", BODY, a={"num_hidden_layers": 6})
    assert section(explain(made), "layers") == [
        "model.layers: 5 of 3 slices",
        "before  model.embed_tokens.weight          from a",
        "[0, 2)  a [0, 2)",
        "[2, 4)  b [1, 3)",
        "[4, 5)  a [4, 5)",
        "after   lm_head.weight, model.norm.weight  from a",
        "not used: a [2, 4) [5, 6), b [0, 1) [3, 6)",
        "config.json: num_hidden_layers 5",
    ]


def test_a_recipe_without_slices_says_nothing_of_layers() -> None:
    made = planned("passthrough", {"models": ["a"]})
    assert "layers" not in explain(made)
    assert as_json(made)["stacks"] == as_json(made)["config"] == []


def test_programs_are_told_the_same() -> None:
    made = as_json(planned("passthrough", BODY, a={"num_hidden_layers": 6}))
    (stack,) = made["stacks"]
    assert stack["layers"] == 5
    assert stack["slices"][1] == {
        "start": 2,
        "stop": 4,
        "sources": [{"source": 1, "start": 1, "stop": 3}],
    }
    assert (stack["before"], stack["after"]) == ([EMBEDDING], [HEAD, NORM])
    assert made["config"] == [{"key": "num_hidden_layers", "value": 5}]
    tensor = next(tensor for tensor in made["tensors"] if tensor["name"] == UP(3))
    assert [(one["source"], one["tensor"]) for one in tensor["inputs"]] == [(1, UP(2))]
