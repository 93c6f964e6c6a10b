"""YAML text as a tree whose every node knows its line.

PyYAML's loaders forget lines and let the last of two equal keys win in silence, so the tree is
built here from its parser's events: duplicate keys and tags are refused, aliases and merge keys
(`<<`) work, scalars are read by YAML 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from raymerge.errors import RecipeError
from raymerge.recipe.scalars import ScalarValue, read_plain
from raymerge.recipe.wording import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_MAX_SHOWN = 60
_DEFAULT_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a recipe file."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"

    def error(
        self, message: str, *, tensor: str | None = None, source: str | None = None
    ) -> RecipeError:
        """An error about this line; `message` begins with the key."""
        return RecipeError(f"{self}: {message}", file=self.path, tensor=tensor, source=source)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value."""

    place: Place
    value: ScalarValue
    text: str
    """As written, without quotes."""
    quoted: bool

    @property
    def shown(self) -> str:
        """The value as an error message quotes it."""
        if self.value is None:
            return self.text or "empty"
        text = self.text if len(self.text) <= _MAX_SHOWN else f"{self.text[:_MAX_SHOWN]}..."
        return repr(text) if isinstance(self.value, str) else text

    def as_text(self, key: str) -> str:
        """The value as a string that is not empty; a bare number or boolean is refused."""
        if isinstance(self.value, str) and self.value:
            return self.value
        hint = "" if self.value in (None, "") else f"; to mean the word, write '{self.text}'"
        raise self.place.error(f"{key} is {self.shown}; allowed: a string{hint}")


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    items: tuple[Node, ...]
    shown = "a list"

    def as_text(self, key: str) -> str:
        """Refuse: a list is no string."""
        raise self.place.error(f"{key} is a list; allowed: a string")


@dataclass(frozen=True, slots=True)
class Field:
    """A key's own line and its value."""

    place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping with string keys."""

    place: Place
    fields: Mapping[str, Field]
    shown = "a mapping"

    def as_text(self, key: str) -> str:
        """Refuse: a mapping is no string."""
        raise self.place.error(f"{key} is a mapping; allowed: a string")

    def get(self, key: str) -> Node | None:
        """The value under `key`; None if the key is absent or its value is null."""
        field = self.fields.get(key)
        if field is None or (isinstance(field.node, Scalar) and field.node.value is None):
            return None
        return field.node

    def place_of(self, key: str) -> Place:
        """Where `key` stands, or the mapping itself if it has no such key."""
        return self.fields[key].place if key in self.fields else self.place

    def check_keys(self, what: str, allowed: Iterable[str], idle: Iterable[str] = ()) -> None:
        """Refuse any key that is neither `allowed` nor `idle`.

        Args:
            what: What this mapping is, with its article.
            allowed: Keys that are read.
            idle: Keys of mergekit's that mean nothing here.
        """
        known = set(allowed)
        for key, field in self.fields.items():
            if key not in known and key not in idle:
                hint = did_you_mean(key, known)
                raise field.place.error(
                    f"{key}: {what} has no such key; allowed: {listed(known)}.{hint}"
                )

    def walk(self) -> Iterator[Fields]:
        """This mapping and, at any depth, those in it."""
        yield self
        for field in self.fields.values():
            for node in field.node.items if isinstance(field.node, Items) else (field.node,):
                if isinstance(node, Fields):
                    yield from node.walk()


Node = Scalar | Items | Fields


def read_documents(text: str, path: str) -> tuple[Fields, ...]:
    """The mappings that `text` holds, one per YAML document and at least one.

    Raises:
        RecipeError: Not YAML, empty, not a mapping.
    """
    try:
        documents = [node for node in yaml.compose_all(text, yaml.BaseLoader) if not _blank(node)]
        if not documents:
            raise RecipeError(
                f"{path}: the recipe is empty; it needs merge_method and models", file=path
            )
        roots = [_Builder(path).node(document) for document in documents]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(path, line).error(f"not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Place(path, line).error(f"not YAML: {error.reason}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: the recipe is nested too deeply to read", file=path) from error
    return tuple(map(_as_fields, roots))


def _as_fields(root: Node) -> Fields:
    if isinstance(root, Fields):
        return root
    raise root.place.error(
        f"the recipe is {root.shown}; it should be a mapping with merge_method and models"
    )


def _blank(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and not node.value


def _place(path: str, node: yaml.Node) -> Place:
    return Place(path, node.start_mark.line + 1)


class _Builder:
    """Turns PyYAML's nodes into ours, each once however many aliases lead to it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._built: dict[yaml.Node, Node] = {}
        self._open: set[yaml.Node] = set()

    def node(self, node: yaml.Node) -> Node:
        if node in self._built:
            return self._built[node]
        place = _place(self._path, node)
        if node.tag not in _DEFAULT_TAGS:
            shown = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise place.error(f"the tag {shown} means nothing here; write the value without it")
        if node in self._open:
            raise place.error("an anchor whose value contains itself; write the value out")
        self._open.add(node)
        self._built[node] = self._build(node, place)
        self._open.remove(node)
        return self._built[node]

    def _build(self, node: yaml.Node, place: Place) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Fields(place, self._fields(node))
        if isinstance(node, yaml.SequenceNode):
            return Items(place, tuple(self.node(item) for item in node.value))
        assert isinstance(node, yaml.ScalarNode)
        quoted = node.style is not None
        value = node.value if quoted else read_plain(node.value)
        return Scalar(place, value, node.value, quoted)

    def _fields(self, node: yaml.MappingNode) -> dict[str, Field]:
        own: dict[str, Field] = {}
        for key_node, value_node in node.value:
            place = _place(self._path, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise place.error("a list or mapping as a key; keys are words")
            key = key_node.value
            if key in own:
                raise place.error(f"{key}: given twice, first on line {own[key].place.line}")
            own[key] = Field(place, self.node(value_node))
        merged = own.pop("<<", None)
        return own if merged is None else {**_merged(merged), **own}


def _merged(field: Field) -> dict[str, Field]:
    """The fields that a merge key brings in; of several mappings the earlier wins."""
    parts = field.node.items if isinstance(field.node, Items) else (field.node,)
    fields: dict[str, Field] = {}
    for part in parts:
        if not isinstance(part, Fields):
            raise field.place.error(f"<<: merges mappings, and this is {part.shown}")
        fields = {**part.fields, **fields}
    return fields
