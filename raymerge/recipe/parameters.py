"""The `parameters:` of a recipe and of its models, matched against the knobs of the method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raymerge.methods import methods
from raymerge.recipe.dialect import MERGEKIT_KNOBS
from raymerge.recipe.document import Fields, Place
from raymerge.recipe.resolve import Chain, KnobSettings
from raymerge.recipe.settings import CONDITION_KEYS, Setting, read_setting
from raymerge.recipe.sources import Cast, Participant, fields_under
from raymerge.recipe.wording import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raymerge.errors import RecipeError
    from raymerge.methods.registry import Knob, Method

SHORTHANDS = ("trim", "rescale")
"""Knobs that may also stand at the top level."""


def read_parameters(
    top: Fields, method: Method, cast: Cast, levels: Sequence[Fields] = ()
) -> tuple[tuple[KnobSettings, ...], tuple[str, ...]]:
    """What the recipe says about every knob, and the lines that say something to no effect.

    Args:
        top: The recipe.
        method: Whose knobs they are.
        cast: Who takes part, with the parameters of each.
        levels: Mappings of parameters that stand between a source's and the recipe's, the nearest
            first: a slice's, its module's.

    Raises:
        RecipeError: Unknown knob, bad value, or a required knob without one.
    """
    reader = _Reader(method)
    shared = [reader.read_shared(top)]
    shared[:0] = [reader.read_level(level) for level in levels]
    own = [reader.read_own(entry.parameters) for entry in cast.participants]
    reader.read_base(cast.base_parameters)
    settings = tuple(
        KnobSettings(knob, _chains(knob, shared, own, cast)) for knob in method.knobs.values()
    )
    for entry in settings:
        for index, chain in enumerate(entry.chains):
            if not entry.knob.required or chain.settings:
                continue
            if entry.knob.per_source:
                raise _missing(entry.knob, method, top, cast, index)
            raise reader.missing_shared(entry.knob, top)
    _check_trim(settings)
    return settings, tuple(reader.no_effect)


def _chains(
    knob: Knob, shared: list[dict[str, Setting]], own: list[dict[str, Setting]], cast: Cast
) -> tuple[Chain, ...]:
    last = tuple(level[knob.name] for level in shared if knob.name in level)
    if not knob.per_source:
        return (Chain(knob, "", last),)
    return tuple(
        Chain(knob, entry.ref.label, (first[knob.name], *last) if knob.name in first else last)
        for entry, first in zip(cast.participants, own, strict=True)
    )


@dataclass(slots=True)
class _Reader:
    """Reads mappings of knobs, and notes what in them has no effect."""

    method: Method
    no_effect: list[str] = field(default_factory=list)
    misplaced: dict[str, Place] = field(default_factory=dict)
    """Shared knobs written under a model, where they have no effect."""

    def read_shared(self, top: Fields) -> dict[str, Setting]:
        """Read the top-level `parameters` and the shorthands beside them."""
        parameters = fields_under(top, "parameters")
        found = {} if parameters is None else dict(parameters.fields)
        for name in SHORTHANDS:
            if top.get(name) is None:
                continue
            if name in found:
                raise top.place_of(name).error(
                    f"{name}: also given under parameters, on line {found[name].place.line}; "
                    "keep one of the two"
                )
            found[name] = top.fields[name]
        return self._read(Fields(top.place, found))

    def read_level(self, parameters: Fields) -> dict[str, Setting]:
        """Read the `parameters` of a slice or of a module."""
        return self._read(parameters)

    def read_own(self, parameters: Fields | None) -> dict[str, Setting]:
        """Read the `parameters` of one source, where shared knobs are never looked up."""
        if parameters is None:
            return {}
        own = {}
        for name, entry in parameters.fields.items():
            knob = self.method.knobs.get(name)
            if knob is None or knob.per_source:
                own[name] = entry
                continue
            self.misplaced.setdefault(name, entry.place)
            self._note(entry.place, f"{name} has no effect under a model: {self._is_shared}")
        return self._read(Fields(parameters.place, own))

    def read_base(self, parameters: Fields | None) -> None:
        """Note that nothing said about the base counts."""
        for name, entry in parameters.fields.items() if parameters else ():
            if name not in self.method.knobs and name not in MERGEKIT_KNOBS:
                raise self._unknown(name, entry.place)
            self._note(entry.place, f"{name} of the base has no effect on {self.method.name}")

    def missing_shared(self, knob: Knob, top: Fields) -> RecipeError:
        """What to raise where a required shared knob is not given."""
        place = top.place_of("parameters" if "parameters" in top.fields else "merge_method")
        stray = self.misplaced.get(knob.name)
        where = f" (under a model, on line {stray.line}, it has no effect)" if stray else ""
        return place.error(
            f"{knob.name}: missing; {self.method.name} needs it in the top-level parameters"
            f"{where}. Allowed: {knob.allowed}"
        )

    @property
    def _is_shared(self) -> str:
        return f"{self.method.name} takes it from the top-level parameters"

    def _read(self, parameters: Fields) -> dict[str, Setting]:
        settings = {}
        for name, entry in parameters.fields.items():
            knob = self.method.knobs.get(name)
            if knob is not None:
                settings[name] = read_setting(knob, entry.node)
                for clause in settings[name].unreached:
                    self._note(
                        clause.place,
                        f"this condition of {name} has no effect: one above it always matches",
                    )
            elif name in MERGEKIT_KNOBS:
                self._note(entry.place, f"{name} has no effect on {self.method.name}")
            else:
                raise self._unknown(name, entry.place)
        return settings

    def _note(self, place: Place, message: str) -> None:
        self.no_effect.append(f"{place}: {message}")

    def _unknown(self, name: str, place: Place) -> RecipeError:
        known = self.method.knobs
        owners = [method.name for method in methods().values() if name in method.knobs]
        if owners:
            message = f"{name}: {self.method.name} has no such knob, it belongs to {listed(owners)}"
            return place.error(f"{message}; allowed: {listed(known)}")
        hint = did_you_mean(name, known)
        if name in CONDITION_KEYS:
            some = next(iter(known), "weight")
            hint = (
                f" A condition is part of a value: {some}: [{{filter: mlp, value: 0.5}}, "
                "{value: 1}]"
            )
        return place.error(
            f"{name}: {self.method.name} has no such knob; allowed: {listed(known)}.{hint}"
        )


def _missing(knob: Knob, method: Method, top: Fields, cast: Cast, index: int) -> RecipeError:
    entry = cast.participants[index]
    if cast.joined and entry is cast.participants[-1]:
        return _base_without(knob, method, top, entry)
    return entry.place.error(
        f"{knob.name}: missing for source {entry.ref.label!r}; {method.name} needs it under the "
        f"model or in the top-level parameters. Allowed: {knob.allowed}",
        source=entry.ref.label,
    )


def _base_without(knob: Knob, method: Method, top: Fields, entry: Participant) -> RecipeError:
    return top.place_of("base_model").error(
        f"base_model: {method.name} counts {entry.ref.label!r} as one more source, since a base "
        "that is not listed under models is added to them (mergekit's rule), and it has no "
        f"{knob.name}. List it with a {knob.name} of its own (0 leaves it out), give a "
        f"{knob.name} in the top-level parameters, or remove base_model",
        source=entry.ref.label,
    )


def _check_trim(settings: tuple[KnobSettings, ...]) -> None:
    """Refuse a density that varies by tensor where it is a fraction of the whole model."""
    by_name = {entry.knob.name: entry for entry in settings}
    if "trim" not in by_name or by_name["trim"].value("", 0.0) != "model":
        return
    for chain in by_name["density"].chains:
        if chain.settings and not chain.settings[0].constant:
            raise chain.settings[0].place.error(
                "density: varies by tensor, and under trim: model it is a fraction of the whole "
                "model; write one number per source, or trim: tensor"
            )
