"""The checkpoints a recipe names, and the part each plays in its method.

mergekit adds a `base_model` that is not listed as the last model, for every method. Methods
relative to a base ignore what is said about it, so there it is the base and nothing else; `linear`
averages it in like any other, and so does raymerge.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymerge.methods.registry import Method, Over
from raymerge.recipe.dialect import IDLE_SOURCE_KEYS, refuse_stray_knobs
from raymerge.recipe.document import Fields, Items, Node, Place, Scalar
from raymerge.recipe.labels import Named, assign_labels
from raymerge.recipe.model import SourceRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BEFORE_URL = re.compile(r"\+(?=[a-z0-9]+://)", re.IGNORECASE)
LOCATION_KEYS = ("path", "model", "revision", "lora")
Reference = tuple[str, str | None]
"""A location and a revision of what lies there."""
Identity = tuple[Reference, Reference | None]
_ENTRY_KEYS = {"sources": ("layer_range",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One mention of a checkpoint, as written."""

    location: str
    revision: str | None
    label: str | None
    parameters: Fields | None
    place: Place
    adapter: Reference | None = None
    """A LoRA adapter to add to it."""

    @property
    def identity(self) -> Identity:
        """Equal for two mentions of the same checkpoint."""
        adapter = self.adapter and (one_spelling(self.adapter[0]), self.adapter[1])
        return (one_spelling(self.location), self.revision), adapter


def one_spelling(location: str) -> str:
    """The same text for a folder that is here, whichever way it is written."""
    here = os.path.exists(location)  # noqa: PTH110 - it may be no path at all
    return os.path.realpath(location) if here else os.path.normpath(location)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A source that per-source knobs apply to, and what the recipe says under it."""

    ref: SourceRef
    parameters: Fields | None
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who takes part in a merge."""

    participants: tuple[Participant, ...]
    base: SourceRef | None
    base_parameters: Fields | None
    """What the recipe says under the base where the method ignores it."""
    joined: bool
    """Whether the base is the last participant without being listed."""


def make_cast(
    method: Method,
    models: Sequence[Listed],
    base: Listed | None,
    refs: Mapping[Identity, SourceRef],
    place: Place,
    *,
    key: str = "models",
) -> Cast:
    """Tell sources from the base.

    Args:
        method: Says whether it takes a base, and how many sources.
        models: The models listed.
        base: The one that `base_model` names.
        refs: Every model of the recipe.
        place: Where the models are listed.
        key: What they are listed under: `models`, or `sources` in a slice. There a base that is not
            listed has no layers to take part with.

    Raises:
        RecipeError: Too few or too many sources, or a slice without its base.
    """
    relative = method.over.resolve(has_base=base is not None) is not Over.SOURCES
    others = [model for model in models if base is None or model.identity != base.identity]
    unlisted = [base] if base is not None and len(others) == len(models) else []
    if key == "sources" and relative and unlisted:
        if method.max_sources is not None and len(models) > method.max_sources:
            raise place.error(
                f"sources: the base of {method.name}, {unlisted[0].location!r}, is not among them; "
                "base_model has to name one of them"
            )
        raise place.error(
            f"sources: {method.name} needs the layers of its base, {unlisted[0].location!r}, which "
            "is not among them; list it too, with its layer_range"
        )
    joining = [] if relative or key == "sources" else unlisted
    taking_part = others if relative else [*models, *joining]
    if not _is_base_alone(method, base, models, key):
        number = len(taking_part)
        _check_number(method, number, place, joined=bool(joining), relative=relative, key=key)
    base_entry = next((model for model in models if model not in others), None)
    return Cast(
        participants=tuple(
            Participant(
                ref=refs[entry.identity],
                parameters=entry.parameters,
                place=entry.place,
            )
            for entry in taking_part
        ),
        base=None if base is None else refs[base.identity],
        base_parameters=base_entry.parameters if base_entry and relative else None,
        joined=bool(joining),
    )


def _is_base_alone(method: Method, base: Listed | None, models: Sequence[Listed], key: str) -> bool:
    """Whether it is meant that there is nothing but the base.

    With its adapter, for so adapters are merged into models; and in a slice, whose layers are then
    the base's.
    """
    if base is None or method.over is not Over.DELTAS or method.min_sources > 1:
        return False
    meant = base.adapter is not None or key == "sources"
    return meant and [model.identity for model in models] == [base.identity]


def read_models(fields: Fields, key: str = "models") -> tuple[Listed, ...]:
    """Read the list of models under `key`.

    Raises:
        RecipeError: None, or one listed twice.
    """
    node = fields.get(key)
    if node is None or (isinstance(node, Items) and not node.items):
        raise fields.place_of(key).error(f"{key}: missing; list the models to merge")
    if not isinstance(node, Items):
        raise node.place.error(f"{key} is {node.shown}; allowed: a list of models")
    models = tuple(_read_entry(item, key) for item in node.items)
    first: dict[Identity, Listed] = {}
    for entry in models:
        twin = first.setdefault(entry.identity, entry)
        if twin is not entry:
            remedy = (
                "a slice takes each model once"
                if key == "sources"
                else "list it once, where there are weights with their sum"
            )
            raise entry.place.error(
                f"model: {entry.location!r} is listed twice, first on line {twin.place.line}; "
                f"{remedy}"
            )
    return models


def _read_entry(node: Node, key: str) -> Listed:
    if not isinstance(node, Fields):
        return _read_mention("model", node)
    allowed = (*LOCATION_KEYS, "label", "parameters", *_ENTRY_KEYS.get(key, ()))
    refuse_stray_knobs(node, allowed)
    node.check_keys(f"an entry of {key}", allowed, IDLE_SOURCE_KEYS)
    return _read_mention("model", node, parameters=fields_under(node, "parameters"))


def read_base(fields: Fields) -> Listed | None:
    """Read `base_model`, if there is one."""
    node = fields.get("base_model")
    if isinstance(node, Fields):
        node.check_keys("base_model", (*LOCATION_KEYS, "label"), IDLE_SOURCE_KEYS)
    return None if node is None else _read_mention("base_model", node)


def _read_mention(key: str, node: Node, *, parameters: Fields | None = None) -> Listed:
    (location, revision), adapter = read_location(key, node)
    label = node.get("label") if isinstance(node, Fields) else None
    return Listed(
        location=location,
        revision=revision,
        label=None if label is None else label.as_text("label"),
        parameters=parameters,
        place=node.place,
        adapter=adapter,
    )


def read_location(key: str, node: Node) -> tuple[Reference, Reference | None]:
    """Where the model that `node` names lies, and the adapter to add to it.

    Raises:
        RecipeError: Neither a string nor a mapping that says where, or two adapters.
    """
    if isinstance(node, Scalar):
        return split_adapter(node.as_text(key), node.place, key)
    if isinstance(node, Items):
        raise node.place.error(f"{key} is a list; allowed: a path, URL or repository")
    path, model, revision, lora = (node.get(name) for name in LOCATION_KEYS)
    if (path is None) == (model is None):
        raise node.place.error(f"{key}: say where it is, with exactly one of model and path")
    found: Reference
    adapter: Reference | None = None
    if path is not None:
        found = path.as_text("path"), None
    else:
        assert model is not None
        if isinstance(model, Fields):
            model.check_keys("model", LOCATION_KEYS, IDLE_SOURCE_KEYS)
        found, adapter = read_location("model", model)
    if revision is not None:
        if found[1] is not None:
            raise revision.place.error(
                f"revision: given twice; {found[1]!r} is already part of the model"
            )
        found = found[0], revision.as_text("revision")
    return found, adapter if lora is None else _read_lora(lora, adapter)


def _read_lora(node: Node, already: Reference | None) -> Reference:
    """The adapter under `lora`: a string, or mergekit's mapping."""
    if isinstance(node, Fields):
        node.check_keys("lora", ("path", "model", "revision"))
    found, second = read_location("lora", node)
    if already or second:
        raise node.place.error(
            f"lora: a second adapter; {(already or found)[0]!r} is already added to the model. "
            "Merge the first one with passthrough and add the second one to the result"
        )
    return found


def split_adapter(text: str, place: Place, key: str) -> tuple[Reference, Reference | None]:
    """Split `model+adapter`, each with a revision or without.

    What exists on disk is whole, and so is an object's URL up to another URL.
    """
    if _BEFORE_URL.search(text):
        model, adapter = _BEFORE_URL.split(text, maxsplit=1)
        return split_reference(model, place, key), split_reference(adapter, place, key)
    model, plus, adapter = text.partition("+")
    if not plus or _is_whole(text):
        return split_reference(text, place, key), None
    if not model or not adapter or "+" in adapter:
        raise place.error(
            f"{key} is {text!r}, which does not exist as a path; allowed: model+adapter, with one "
            "+ in all. Where a location has a + of its own, write {path: ..., lora: {path: ...}}"
        )
    return split_reference(model, place, key), split_reference(adapter, place, key)


def split_reference(text: str, place: Place, key: str) -> Reference:
    """Split `org/name@revision`; anything that exists on disk, or is an object's URL, is whole."""
    if _is_whole(text):
        return text, None
    location, at, revision = text.rpartition("@")
    if not at:
        return text, None
    if not location or not revision:
        raise place.error(
            f"{key} is {text!r}; allowed: a path, URL or repository, or name@revision"
        )
    return location, revision


def _is_whole(text: str) -> bool:
    """Whether `@` and `+` are part of it: so they may be in an object's key or a folder's name."""
    hub = text.lower().startswith("hf://") or not _URL.match(text)
    return not hub or os.path.exists(text)  # noqa: PTH110 - text may be no path at all


def fields_under(fields: Fields, key: str) -> Fields | None:
    """The mapping under `key`, if there is one."""
    node = fields.get(key)
    if node is None or isinstance(node, Fields):
        return node
    raise node.place.error(f"{key} is {node.shown}; allowed: a mapping such as {{weight: 0.5}}")


def make_refs(mentions: Sequence[Listed], base: Listed | None) -> dict[Identity, SourceRef]:
    """A reference, with its label, for each checkpoint mentioned.

    Raises:
        RecipeError: Labels that contradict each other.
    """
    labels = assign_labels([_named(entry, base) for entry in mentions])
    return {
        entry.identity: SourceRef(
            label=label,
            location=entry.location,
            revision=entry.revision,
            line=entry.place.line,
            adapter=_adapter_ref(entry, label),
        )
        for entry, label in zip(mentions, labels, strict=True)
    }


def _adapter_ref(entry: Listed, label: str) -> SourceRef | None:
    if entry.adapter is None:
        return None
    location, revision = entry.adapter
    return SourceRef(
        label=f"{label} adapter", location=location, revision=revision, line=entry.place.line
    )


def _named(entry: Listed, base: Listed | None) -> Named:
    """The entry's label or, for the base listed a second time, that of `base_model`."""
    given = entry.label
    if base is not None and base.label and base.identity == entry.identity:
        if given not in (None, base.label):
            raise entry.place.error(
                f"label: {given!r} here, {base.label!r} under base_model on line "
                f"{base.place.line}; they are one model"
            )
        given = base.label
    adapter = entry.adapter[0] if entry.adapter else None
    return Named(location=entry.location, adapter=adapter, label=given, place=entry.place)


def _check_number(
    method: Method, number: int, place: Place, *, joined: bool, relative: bool, key: str
) -> None:
    lower, upper = method.min_sources, method.max_sources
    if lower <= number and (upper is None or number <= upper):
        return
    wanted = f"exactly {lower}" if lower == upper else f"{lower} to {upper}"
    wanted = f"at least {lower}" if upper is None else wanted
    noun = "model" if lower == 1 and upper in (1, None) else "models"
    besides = " besides the base" if relative else ""
    aside = " (base_model, not listed, is one more)" if joined else ""
    raise place.error(f"{key}: {method.name} takes {wanted} {noun}{besides}, found {number}{aside}")
