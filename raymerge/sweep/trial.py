"""A trial: one recipe of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raymerge.recipe import Recipe

Value = float | int | str | bool
"""What an axis may be set to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One recipe, and where its checkpoint goes."""

    name: str
    """Fit for a file name, the same in every run of the sweep, unique in it."""
    recipe: Recipe
    text: str
    """The YAML that makes this trial alone."""
    out: str
    """Path or URL of its checkpoint."""
    values: Mapping[str, Value]
    """What each axis is set to; empty where the sweep is a list of recipes."""
