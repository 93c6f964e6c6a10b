"""YAML text to nodes with lines: what is read, what is refused."""

from __future__ import annotations

import contextlib
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raymerge.errors import RecipeError
from raymerge.recipe.document import Fields, Items, Scalar, read_documents
from raymerge.recipe.scalars import ScalarValue, read_plain


def value_of(text: str) -> ScalarValue:
    node = read_documents(f"key: {text}\n", "r.yaml")[0].fields["key"].node
    assert isinstance(node, Scalar)
    return node.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25e+1", -2.5),
        ("+3", 3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-01", "2024-01-01"),
        ("'0.5'", "0.5"),
        ('"true"', "true"),
        ("''", ""),
    ],
)
def test_scalars_are_read_by_yaml_1_2(text: str, value: ScalarValue) -> None:
    read = value_of(text)
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_float_so_that_its_refusal_can_say_so() -> None:
    read = value_of(".nan")
    assert isinstance(read, float)
    assert math.isnan(read)


def test_an_int_longer_than_python_will_parse_is_still_a_number() -> None:
    assert value_of("1" * 5000) == math.inf


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_that_python_prints_is_read_back(value: float) -> None:
    assert read_plain(repr(value)) == value


def test_nodes_know_the_line_they_start_on() -> None:
    (root,) = read_documents("\n# comment\na: 1\nb:\n  - x\n  - c: 2\n", "r.yaml")
    assert str(root.place_of("a")) == "r.yaml:3"
    items = root.fields["b"].node
    assert isinstance(items, Items)
    assert [item.place.line for item in items.items] == [5, 6]
    assert root.place_of("absent").line == root.place.line == 3


def test_aliases_and_merge_keys_work_and_own_keys_win() -> None:
    (root,) = read_documents(
        "x: &x {weight: 1, density: 2}\n"
        "y: &y {weight: 9, gamma: 3}\n"
        "one: {density: 5, <<: *x}\n"
        "two: {<<: [*x, *y]}\n"
        "same: *x\n",
        "r.yaml",
    )

    def plain(key: str) -> dict[str, ScalarValue]:
        node = root.fields[key].node
        assert isinstance(node, Fields)
        nodes = {name: field.node for name, field in node.fields.items()}
        return {name: node.value for name, node in nodes.items() if isinstance(node, Scalar)}

    assert plain("one") == {"weight": 1, "density": 5}
    assert plain("two") == {"weight": 1, "density": 2, "gamma": 3}
    assert root.fields["same"].node is root.fields["x"].node


def test_aliases_of_aliases_are_built_once_each() -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30)]
    (root,) = read_documents("\n".join(["l0: &l0 1", *levels]), "r.yaml")
    assert len(root.fields) == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: the recipe is empty; it needs merge_method and models"),
        ("# only a comment\n", "r.yaml: the recipe is empty; it needs merge_method and models"),
        (
            "- a\n",
            "r.yaml:1: the recipe is a list; it should be a mapping with merge_method and models",
        ),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3: a: given twice, first on line 1"),
        ("a:\n  b: 1\n  b: 2\n", "r.yaml:3: b: given twice, first on line 2"),
        (
            "a: 1\n---\n- b\n",
            "r.yaml:3: the recipe is a list; it should be a mapping with merge_method and models",
        ),
        ("a: [1,\n", "r.yaml:2: not YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n\tb: 2\n", "r.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: *x\n", "r.yaml:1: not YAML: found undefined alias 'x'"),
        ("a: 1\nb: \x00\n", "r.yaml:2: not YAML: special characters are not allowed"),
        (
            "a: !!float 1\n",
            "r.yaml:1: the tag !!float means nothing here; write the value without it",
        ),
        (
            "a: !include x\n",
            "r.yaml:1: the tag !include means nothing here; write the value without it",
        ),
        (
            "a: &a [1, *a]\n",
            "r.yaml:1: an anchor whose value contains itself; write the value out",
        ),
        ("? [a, b]\n: 1\n", "r.yaml:1: a list or mapping as a key; keys are words"),
        ("a: 1\n<<: 2\n", "r.yaml:2: <<: merges mappings, and this is 2"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_documents(text, "r.yaml")
    assert str(caught.value) == message
    assert caught.value.file == "r.yaml"


@pytest.mark.parametrize("text", ["---\na: 1\n", "a: 1\n...\n", "a: 1\n---\n", "\ufeffa: 1\n"])
def test_document_markers_and_a_byte_order_mark_are_no_second_document(text: str) -> None:
    assert list(read_documents(text, "r.yaml")[0].fields) == ["a"]


def test_several_documents_keep_their_lines() -> None:
    first, second = read_documents("a: 1\n---\n# between\nb: 2\n---\n", "r.yaml")
    assert (first.fields["a"].place.line, second.fields["b"].place.line) == (1, 4)


def test_nesting_beyond_the_stack_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: the recipe is nested too deeply to read"):
        read_documents("a: " + "[" * 20_000, "r.yaml")


@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_refused_with_a_recipe_error(text: str) -> None:
    roots: tuple[Fields, ...] = ()
    with contextlib.suppress(RecipeError):
        roots = read_documents(text, "r.yaml")
    composed = yaml.compose_all(text, yaml.BaseLoader) if roots else ()
    assert len(roots) == sum(isinstance(node, yaml.MappingNode) for node in composed)
