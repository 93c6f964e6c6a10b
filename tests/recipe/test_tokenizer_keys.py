"""`tokenizer_source` and `tokenizer`: what is read, and what is refused with its line."""

from __future__ import annotations

import pytest

from raymerge.errors import RecipeError
from raymerge.recipe import loads
from raymerge.recipe.tokenizer_keys import TokenizerPolicy

HEAD = """\
merge_method: linear
models: [m/a, {model: m/b@v1, label: two}]
parameters: {weight: 1}
"""


def read(text: str, base: str = "") -> TokenizerPolicy | None:
    return loads(f"{HEAD}{base}{text}\n", path="r.yaml").tokenizer


@pytest.mark.parametrize(
    ("text", "base", "union", "donor"),
    [
        ("tokenizer_source: union", "", True, "a"),
        ("tokenizer_source: union", "base_model: m/c\n", True, "c"),
        ("tokenizer_source: base", "base_model: m/c\n", False, "c"),
        ("tokenizer_source: base", "", False, "a"),
        ("tokenizer_source: m/a", "", False, "a"),
        ("tokenizer_source: m/./a/", "", False, "a"),
        ("tokenizer_source: m/b@v1", "", False, "two"),
        ("tokenizer_source: two", "", False, "two"),
        ("tokenizer: {}", "", True, "a"),
        ("tokenizer: {source: two}", "", False, "two"),
        ("tokenizer: {source: {path: m/b, revision: v1}}", "", False, "two"),
        ("tokenizer_source: {model: {path: m/b, revision: v1}}", "", False, "two"),
        ("tokenizer_source: {model: m/a, override_architecture: X}", "", False, "a"),
        ("tokenizer: {source: null}", "", True, "a"),
    ],
)
def test_the_source_is_a_policy_or_one_of_the_models(
    text: str, base: str, *, union: bool, donor: str
) -> None:
    policy = read(text, base)

    assert policy is not None
    assert (policy.union, policy.donor) == (union, donor)


@pytest.mark.parametrize(
    ("text", "location", "revision"),
    [
        ("tokenizer_source: org/chat", "org/chat", None),
        ("tokenizer: {source: org/chat@v2}", "org/chat", "v2"),
        ("tokenizer_source: m/b", "m/b", None),
        ("tokenizer_source: ./chat", "./chat", None),
        ("tokenizer_source: org/chat+org/lora", "org/chat", None),
        ("tokenizer_source: {model: {path: org/chat, revision: v2}}", "org/chat", "v2"),
        ("tokenizer: {source: {model: org/chat, lora: org/lora}}", "org/chat", None),
        ("tokenizer_source: raymerge", "raymerge", None),
    ],
)
def test_a_path_or_repository_is_a_model_that_is_not_merged(
    text: str, location: str, revision: str | None
) -> None:
    recipe = loads(f"{HEAD}{text}\n", path="r.yaml")
    [lender] = recipe.lenders
    assert (lender.location, lender.revision) == (location, revision)
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.donor == lender.label
    assert [ref.label for ref in recipe.read] == ["a", "two", lender.label]


def test_a_model_with_an_adapter_is_found_as_it_is_listed() -> None:
    text = "merge_method: linear\nmodels: [m/a+m/lora, m/b]\nparameters: {weight: 1}\n"
    recipe = loads(f"{text}tokenizer_source: m/a+m/lora\n", path="r.yaml")
    assert not recipe.lenders
    assert recipe.tokenizer is not None
    assert recipe.tokenizer.donor == "a+lora"


def test_of_two_that_are_one_model_the_adapter_tells() -> None:
    text = "merge_method: linear\nmodels: [m/a+m/lora, m/a]\nparameters: {weight: 1}\n"
    for said, label in (
        ("m/a", "a"),
        ("m/a+m/lora", "a+lora"),
        ("{model: m/a, lora: m/lora}", "a+lora"),
        ("m/a+m/other", "a+lora"),  # neither: an adapter has no tokenizer of its own
    ):
        recipe = loads(f"{text}tokenizer_source: {said}\n", path="r.yaml")
        assert not recipe.lenders
        assert recipe.tokenizer is not None
        assert recipe.tokenizer.donor == label


def test_a_label_that_is_taken_is_not_given_again() -> None:
    text = "merge_method: linear\nmodels: [{model: m/a, label: x tokenizer}, m/b]\n"
    recipe = loads(f"{text}parameters: {{weight: 1}}\ntokenizer_source: m/x\n", path="r.yaml")
    assert [ref.label for ref in recipe.read] == ["x tokenizer", "b", "x tokenizer 2"]


@pytest.mark.parametrize("text", ["", "tokenizer_source: null", "tokenizer: null"])
def test_nothing_said_is_no_policy(text: str) -> None:
    assert read(text) is None


def test_tokens_say_where_their_rows_come_from() -> None:
    policy = read(
        """
tokenizer:
  pad_to_multiple_of: 64
  tokens:
    "<a>": {source: m/a, force: true}
    "<z>": {source: {kind: zero}}
    "<b>": {source: {kind: model_token, model: two, token: "</s>"}}
    "<n>": {source: {kind: model_token, model: two, token_id: 7}}
    "<d>": {}
    "<m>": {source: {model: {path: m/a}}}
    "<t>": {source: {kind: model_token, model: {path: m/a}, token: x}}
"""
    )

    assert policy is not None
    assert policy.pad_to_multiple_of == 64
    found = [(r.token, r.kind, r.source, r.source_token, r.force) for r in policy.rules]
    assert found == [
        ("<a>", "row", "a", None, True),
        ("<z>", "zero", None, None, False),
        ("<b>", "row", "two", "</s>", False),
        ("<n>", "row", "two", 7, False),
        ("<d>", "default", None, None, False),
        ("<m>", "row", "a", None, False),
        ("<t>", "row", "a", "x", False),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer_source: onion", ("'onion' is not one of the models that are merged; allowed: "
                                    "union, base, a, two, a path or repository. Did you mean "
                                    "'union'?")),
        ("tokenizer_source: [union]", "tokenizer_source is a list; allowed: a string"),
        ("tokenizer_source: 3", "tokenizer_source is 3; allowed: a string"),
        ("tokenizer: union", ("tokenizer is 'union'; allowed: a mapping of pad_to_multiple_of, "
                             "source, tokens. The short form is tokenizer_source: union")),
        ("tokenizer: {sourc: union}", "sourc: tokenizer has no such key"),
        ("tokenizer: {pad_to_multiple_of: 0}", ("pad_to_multiple_of is 0; allowed: a whole number "
                                               "from 1 on")),
        ("tokenizer: {pad_to_multiple_of: 2.5}", "pad_to_multiple_of is 2.5"),
        ("tokenizer: {pad_to_multiple_of: true}", "pad_to_multiple_of is true"),
        ("tokenizer: {tokens: [x]}", "tokens is a list; allowed: a mapping from tokens"),
        ("tokenizer: {tokens: {'': {}}}", "tokens: an empty token"),
        ("tokenizer: {tokens: {x: base}}", ("tokens: 'x' is 'base'; allowed: a mapping of force, "
                                           "source")),
        ("tokenizer: {tokens: {x: {from: m/a}}}", "from: the token 'x' has no such key"),
        ("tokenizer: {tokens: {x: {source: m/q}}}", "source: 'm/q' is not one of the models"),
        ("tokenizer: {tokens: {x: {force: 1}}}", "force is 1; allowed: true or false"),
        ("tokenizer: {source: {mdel: m/a}}", "mdel: source has no such key"),
        ("tokenizer_source: {revision: v1}", ("tokenizer_source: say where it is, with exactly one "
                                              "of model and path")),
        ("tokenizer: {tokens: {x: {source: {path: m/q}}}}", "source: 'm/q' is not one of the"),
        ("tokenizer: {tokens: {x: {source: {model: m/a, token: y}}}}", "kind: missing"),
        ("tokenizer: {tokens: {x: {source: {}}}}", "kind: missing; allowed: model_token, zero"),
        ("tokenizer: {tokens: {x: {source: {kind: nil}}}}", ("kind is 'nil'; allowed: model_token, "
                                                            "zero")),
        ("tokenizer: {tokens: {x: {source: {kind: zero, model: m/a}}}}", ("model: a source of kind "
                                                                         "zero has no such key")),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, token: y}}}}", "model: missing"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: m/a}}}}",
         "token, token_id: say which token, with exactly one of them"),
        (("tokenizer: {tokens: {x: {source: {kind: model_token, model: m/a, token: y, "
         "token_id: 1}}}}"), "token, token_id: say which token, with exactly one of them"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: m/a, token_id: -1}}}}",
         "token_id is -1; allowed: a whole number from 0 on"),
        ("tokenizer_source: union\ntokenizer: {}", "tokenizer: given beside tokenizer_source"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(text)

    line = 5 if "\n" in text else 4
    assert caught.value.message.startswith(f"r.yaml:{line}: ")
    assert message in caught.value.message
