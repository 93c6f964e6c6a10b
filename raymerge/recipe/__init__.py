"""Recipes: YAML in, frozen dataclasses out; every mistake refused with file, line and key."""

from raymerge.recipe.model import Knobs, Recipe, SourceRef
from raymerge.recipe.parse import load, loads

__all__ = ["Knobs", "Recipe", "SourceRef", "load", "loads"]
