"""Modules: which tensors a name under `modules:` speaks of.

mergekit takes the names from tables of architectures. Here a module is a prefix of tensor names: a
whole one (`model.language_model`), or components of one (`language_model`) that occur in one place
only. `default` is the whole model, as mergekit calls the only module of a language model.
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


@dataclass(frozen=True, slots=True)
class Territory:
    """The tensors of a module: all whose names begin with its prefix."""

    prefix: str
    """Whole components; empty for the whole model."""

    def holds(self, name: str) -> bool:
        """Whether the tensor of that name belongs to it."""
        return not self.prefix or name == self.prefix or name.startswith(f"{self.prefix}.")


def territories(recipe: Recipe, views: Sequence[View]) -> dict[str | None, Territory]:
    """The tensors of each module, by the module's name as written.

    Raises:
        PlanError: A name that no prefix has or that several have, or modules that overlap.
    """
    found: dict[str | None, Territory] = {}
    for section in recipe.sections:
        if section.module is None:
            found[None] = Territory("")
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
        return Territory(section.module)
    if len(matches) == 1:
        return Territory(next(iter(matches)))
    if not matches and section.module == _DEFAULT:
        return Territory("")
    where = f"{recipe.path}:{section.line}: modules:"
    if matches:
        raise PlanError(
            f"{where} {section.module!r} stands in {len(matches)} places, {', '.join(matches)}; "
            "write the whole prefix"
        )
    known = _candidates(prefixes)
    hint = did_you_mean(section.module, {name.rpartition(".")[2] for name in known})
    shown = ", ".join(known[:_MAX_SHOWN]) + (" and more" if len(known) > _MAX_SHOWN else "")
    raise PlanError(
        f"{where} no tensor name has {section.module!r} before its layer number; modules are "
        f"prefixes such as {shown}.{hint}"
    )


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
            if name != other_name and one.holds(other.prefix):
                raise PlanError(
                    f"{recipe.path}: modules: {other_name} ({other.prefix or 'the whole model'}) "
                    f"lies in {name} ({one.prefix or 'the whole model'}); a tensor belongs to one "
                    "module"
                )
