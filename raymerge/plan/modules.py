"""Modules: which tensors a name under `modules:` speaks of.

mergekit takes the names from tables of architectures. Here a module is a prefix of tensor names: a
whole one (`model.language_model`), or components of one (`language_model`) that occur in one place
only. `default` is the whole model, as mergekit calls the only module of a language model. Where no
prefix has them, three names of its tables for models that see are parts by what they do:

    vision_tower             what sees: below vision_tower, vision_model or visual
    multi_modal_projector    what joins it to the text, also where that is visual.merger
    text_decoder             all that is in neither, the head included
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raymerge.errors import PlanError
from raymerge.plan.views import View
from raymerge.recipe import Recipe
from raymerge.recipe.resolve import layer_of
from raymerge.recipe.section import Section
from raymerge.recipe.wording import did_you_mean

_DEFAULT = "default"
_MAX_SHOWN = 8


_SEEING = ("vision_tower", "vision_model", "visual")
_PARTS = ("text_decoder", "vision_tower", "multi_modal_projector")
_JOINING = ("multi_modal_projector", "visual.merger", "visual.deepstack_merger_list")


@dataclass(frozen=True, slots=True)
class Territory:
    """The tensors of a module: all whose names begin with one of its prefixes."""

    prefixes: tuple[str, ...]
    """Whole components; an empty one is the whole model."""
    without: tuple[str, ...] = ()
    """Prefixes of what belongs to another module."""

    def holds(self, name: str) -> bool:
        """Whether the tensor of that name belongs to it."""
        return _below(self.prefixes, name) and not _below(self.without, name)

    @property
    def shown(self) -> str:
        """As a message names it."""
        less = f" but for {', '.join(self.without)}" if self.without else ""
        return (", ".join(filter(None, self.prefixes)) or "the whole model") + less


WHOLE = Territory(("",))
"""A whole model."""


def _below(prefixes: Iterable[str], name: str) -> bool:
    return any(not one or name == one or name.startswith(f"{one}.") for one in prefixes)


def territories(recipe: Recipe, views: Sequence[View]) -> dict[str | None, Territory]:
    """The tensors of each module, by the module's name as written.

    Raises:
        PlanError: A name that no prefix has or that several have, or modules that overlap.
    """
    found: dict[str | None, Territory] = {}
    for section in recipe.sections:
        if section.module is None:
            found[None] = WHOLE
        elif section.module not in found:
            found[section.module] = _find(recipe, section, views)
    _check_apart(recipe, found)
    return found


def _find(recipe: Recipe, section: Section, views: Sequence[View]) -> Territory:
    assert section.module is not None
    labels = {source.label for source in section.sources}
    names = dict.fromkeys(n for view in views if view.label in labels for n in view.tensors)
    prefixes = dict.fromkeys(map(_modules_of, names))
    wanted = tuple(section.module.split("."))
    matches = dict.fromkeys(p for path in prefixes if (p := _ending_in(wanted, path)))
    if section.module in matches:
        return Territory((section.module,))
    if len(matches) == 1:
        return Territory(tuple(matches))
    if not matches and section.module == _DEFAULT:
        return WHOLE
    # What a part does may show in other models than its own: text alone has no part that sees.
    everywhere = {_modules_of(name) for view in views for name in view.tensors}
    if not matches and (part := _part(section.module, everywhere)) is not None:
        return part
    where = f"{recipe.path}:{section.line}: modules:"
    if matches:
        raise PlanError(
            f"{where} {section.module!r} stands in {len(matches)} places, {', '.join(matches)}; "
            "write the whole prefix"
        )
    known = _candidates(prefixes)
    hint = did_you_mean(section.module, [*(name.rpartition(".")[2] for name in known), *_PARTS])
    shown = ", ".join(known[:_MAX_SHOWN]) + (" and more" if len(known) > _MAX_SHOWN else "")
    raise PlanError(
        f"{where} no tensor name has {section.module!r} before its layer number; modules are "
        f"prefixes such as {shown}.{hint}"
    )


def _part(name: str, paths: Iterable[tuple[str, ...]]) -> Territory | None:
    """A part of a model that sees, by what it does; None where there is none of that name."""
    paths = tuple(paths)
    seeing, joining = _places(_SEEING, paths), _places(_JOINING, paths)
    if name == "multi_modal_projector" and joining:
        return Territory(joining)
    if name == "vision_tower" and seeing:
        return Territory(seeing, without=joining)
    if name == "text_decoder" and seeing:
        return Territory(("",), without=(*seeing, *joining))
    return None


def _places(names: Iterable[str], paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The prefixes that end in one of some names, none of them below another."""
    found = (_ending_in(tuple(name.split(".")), path) for name in names for path in paths)
    prefixes = dict.fromkeys(prefix for prefix in found if prefix)
    return tuple(one for one in prefixes if not _below((p for p in prefixes if p != one), one))


def _modules_of(name: str) -> tuple[str, ...]:
    """The components that may name a module: those before a layer's number."""
    layer = layer_of(name)
    return tuple((layer[0] if layer else name).split("."))


def _ending_in(wanted: tuple[str, ...], path: tuple[str, ...]) -> str | None:
    """The shortest prefix of `path` that ends in `wanted`."""
    for stop in range(len(wanted), len(path) + 1):
        if path[stop - len(wanted) : stop] == wanted:
            return ".".join(path[:stop])
    return None


def _candidates(paths: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(".".join(path[: min(2, max(1, len(path) - 1))]) for path in paths))


def _check_apart(recipe: Recipe, found: Mapping[str | None, Territory]) -> None:
    for name, one in found.items():
        for other_name, other in found.items():
            if name != other_name and any(map(one.holds, other.prefixes)):
                raise PlanError(
                    f"{recipe.path}: modules: {other_name} ({other.shown}) lies in {name} "
                    f"({one.shown}); a tensor belongs to one module"
                )
