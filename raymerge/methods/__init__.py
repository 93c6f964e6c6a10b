"""Merge methods, one file each. Importing this package registers every module in the folder."""

from importlib import import_module
from pkgutil import iter_modules

from raymerge.methods.registry import Knob, Method, methods

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["Knob", "Method", "methods"]
