"""What is merged with what: the recipe's `models`, `slices` or `modules`.

    models:                          one section, the whole model
    slices:  [{sources: ...}, ...]   a section each: ranges of layers, stacked in this order
    modules: {name: {models: ...},   a section each
              name: {slices: ...}}   a section a slice, stacked within the module

Precedence of knobs, as in mergekit: the source's parameters, the slice's, the module's, the
recipe's. A slice's own `base_model` wins over the recipe's; a base that a slice does not list has
no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raymerge.methods.registry import Over
from raymerge.recipe.document import Fields, Items, Node, Place
from raymerge.recipe.layer_ranges import read_ranges
from raymerge.recipe.parameters import read_parameters
from raymerge.recipe.section import LayerRange, Section
from raymerge.recipe.sources import (
    Identity,
    Listed,
    fields_under,
    make_cast,
    make_refs,
    read_base,
    read_models,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from raymerge.methods.registry import Method
    from raymerge.recipe.model import SourceRef

_FORMS = ("models", "slices", "modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """All sections, and what they have in common."""

    sections: tuple[Section, ...]
    sources: tuple[SourceRef, ...]
    """Whatever is merged in any section, each once."""
    base: SourceRef | None
    no_effect: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A section as written."""

    key: str
    """What its models stand under: `models`, or `sources` in a slice."""
    place: Place
    models: tuple[Listed, ...]
    base: Listed | None
    levels: tuple[Fields, ...] = ()
    """`parameters` between the source's and the recipe's, nearest first."""
    module: str | None = None
    ranges: Mapping[Identity, LayerRange] | None = None


def read_sections(top: Fields, method: Method) -> Sections:
    """Read who is merged with whom, and under which knobs.

    Raises:
        RecipeError: Not exactly one of `models`, `slices` and `modules`; a model listed twice in
            one place; a range that no model can have; no base where one is needed; too few or many
            sources; a slice of another method; a knob that is wrong or missing.
    """
    base = read_base(top)
    blocks = tuple(_blocks(top, base))
    _check_slice_methods(top, method)
    for block in blocks:
        if block.base is None and method.needs_base:
            raise top.place_of("merge_method").error(
                f"base_model: missing; {method.name} needs the model that the others started from. "
                "Add base_model: <model>"
            )
    refs = make_refs(_mentions(blocks, base), base)
    notes: dict[str, None] = dict.fromkeys(_idle_keys(top, method))
    sections = []
    for block in blocks:
        cast = make_cast(method, block.models, block.base, refs, block.place, key=block.key)
        settings, no_effect = read_parameters(top, method, cast, block.levels)
        notes |= dict.fromkeys(no_effect)
        if not cast.participants:
            notes[f"{block.place}: {block.key}: nothing is added to the base, listed alone"] = None
        section = Section(
            sources=tuple(entry.ref for entry in cast.participants),
            base=None if block.key == "sources" and method.over is Over.SOURCES else cast.base,
            settings=settings,
            line=block.place.line,
            module=block.module,
            ranges=_by_label(block.ranges, refs),
        )
        sections.append(section)
    _check_trim(sections)
    return Sections(
        sections=tuple(sections),
        sources=tuple(dict.fromkeys(ref for section in sections for ref in section.sources)),
        base=None if base is None else refs[base.identity],
        no_effect=tuple(notes),
    )


def _blocks(top: Fields, base: Listed | None) -> Iterator[_Block]:
    form = _form(top, _FORMS, "a recipe")
    if form == "slices":
        yield from _slices(top, base)
    elif form == "modules":
        yield from _modules(top, base)
    else:
        yield _Block(key="models", place=top.place_of("models"), models=read_models(top), base=base)


def _form(fields: Fields, forms: Sequence[str], what: str) -> str | None:
    """The one of the keys that says something; an empty list says nothing, as in mergekit."""
    given = [key for key in forms if _says_something(fields.get(key))]
    if len(given) > 1:
        raise fields.place_of(given[1]).error(
            f"{given[1]}: {given[0]} is given too, on line {fields.place_of(given[0]).line}; "
            f"{what} has exactly one of {', '.join(forms[:-1])} and {forms[-1]}"
        )
    return given[0] if given else None


def _says_something(node: Node | None) -> bool:
    if isinstance(node, Items):
        return bool(node.items)
    return bool(node.fields) if isinstance(node, Fields) else node is not None


def _modules(top: Fields, base: Listed | None) -> Iterator[_Block]:
    node = top.get("modules")
    if not isinstance(node, Fields):
        assert node is not None
        raise node.place.error(
            f"modules is {node.shown}; allowed: a mapping from a module's name to its models or "
            "slices"
        )
    for name, field in node.fields.items():
        if not isinstance(field.node, Fields):
            raise field.place.error(
                f"modules: {name} is {field.node.shown}; allowed: a mapping with models or slices"
            )
        yield from _module(name, field.node, base)


def _module(name: str, fields: Fields, base: Listed | None) -> Iterator[_Block]:
    fields.check_keys(f"the module {name!r}", ("models", "slices", "parameters"))
    form = _form(fields, ("models", "slices"), f"the module {name!r}")
    if form is None:
        raise fields.place.error(
            f"modules: {name} lists nothing to merge; it needs models or slices. To copy the whole "
            "module write `keep:` with a pattern, to leave it out `drop:`"
        )
    if form == "slices":
        yield from _slices(fields, base, module=name)
        return
    yield _Block(
        key="models",
        place=fields.place_of("models"),
        models=read_models(fields),
        base=base,
        levels=_levels(fields),
        module=name,
    )


def _slices(fields: Fields, base: Listed | None, *, module: str | None = None) -> Iterator[_Block]:
    node = fields.get("slices")
    if not isinstance(node, Items):
        assert node is not None
        raise node.place.error(f"slices is {node.shown}; allowed: a list of slices")
    outer = _levels(fields) if module is not None else ()
    for item in node.items:
        if not isinstance(item, Fields):
            raise item.place.error(
                f"a slice is {item.shown}; allowed: a mapping such as "
                "{sources: [{model: ..., layer_range: [0, 8]}]}"
            )
        keys = ("sources", "base_model", "parameters", "residual_weight", "merge_method")
        item.check_keys("a slice", keys)
        models = read_models(item, "sources")
        yield _Block(
            key="sources",
            place=item.place_of("sources"),
            models=models,
            base=read_base(item) or base,
            levels=(*_levels(item), *outer),
            module=module,
            ranges=read_ranges(item, models),
        )


def _levels(fields: Fields) -> tuple[Fields, ...]:
    parameters = fields_under(fields, "parameters")
    return () if parameters is None else (parameters,)


def _by_label(
    ranges: Mapping[Identity, LayerRange] | None, refs: Mapping[Identity, SourceRef]
) -> dict[str, LayerRange] | None:
    if ranges is None:
        return None
    return {refs[identity].label: layers for identity, layers in ranges.items()}


def _mentions(blocks: Iterable[_Block], base: Listed | None) -> list[Listed]:
    """Every checkpoint once, the recipe's base first unless it is listed."""
    first: dict[Identity, Listed] = {}
    bases = {}
    for block in blocks:
        for entry in block.models:
            earlier = first.setdefault(entry.identity, entry)
            first[entry.identity] = _same(earlier, entry)
        if block.base is not None and block.base is not base:
            bases[block.base.identity] = block.base
    for identity, entry in bases.items():
        first[identity] = _same(first.get(identity, entry), entry)
    unlisted = [base] if base is not None and base.identity not in first else []
    return [*unlisted, *first.values()]


def _same(earlier: Listed, later: Listed) -> Listed:
    """One mention of a checkpoint that is mentioned again, with the label that either gives."""
    if None not in (earlier.label, later.label) and earlier.label != later.label:
        raise later.place.error(
            f"label: {later.label!r} here, {earlier.label!r} on line {earlier.place.line}; they "
            "are one model"
        )
    return replace(earlier, label=earlier.label or later.label)


def _idle_keys(top: Fields, method: Method) -> Iterator[str]:
    """A line for each key of a slice that nothing looks at."""
    for item in _all_slices(top):
        if "residual_weight" in item.fields:
            yield (
                f"{item.place_of('residual_weight')}: residual_weight has no effect, nor has it in "
                "mergekit"
            )
        if item.get("base_model") is not None and method.over is Over.SOURCES:
            yield (
                f"{item.place_of('base_model')}: base_model of a slice has no effect on "
                f"{method.name}"
            )


def _check_slice_methods(top: Fields, method: Method) -> None:
    """Raise unless slices that name a method, as those of mergekit-evolve do, name the recipe's."""
    for item in _all_slices(top):
        node = item.get("merge_method")
        if node is not None and (name := node.as_text("merge_method")) != method.name:
            raise node.place.error(
                f"merge_method: {name} in one slice of a recipe whose method is {method.name}; all "
                "slices have the recipe's. Merge slices of another method in a stage of their own"
            )


def _all_slices(top: Fields) -> Iterator[Fields]:
    modules = top.get("modules")
    inner = modules.fields.values() if isinstance(modules, Fields) else ()
    for fields in (top, *(field.node for field in inner)):
        slices = fields.get("slices") if isinstance(fields, Fields) else None
        for item in slices.items if isinstance(slices, Items) else ():
            if isinstance(item, Fields):
                yield item


def _check_trim(sections: Sequence[Section]) -> None:
    """Refuse one threshold for the whole model where parts of it have sources of their own."""
    settings = [entry for section in sections[1:] for entry in section.settings]
    for entry in settings:
        if entry.knob.name == "trim" and entry.value("", 0.0) == "model":
            raise (
                entry.chains[0]
                .settings[0]
                .place.error(
                    "trim is 'model', and this recipe merges parts of the model separately; write "
                    "trim: tensor"
                )
            )
