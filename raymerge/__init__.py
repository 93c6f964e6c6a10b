"""Merge model checkpoints in weight space.

recipe.yaml
   | load     text -> Recipe; a mistake dies here with its line
   | plan     headers of every source -> Plan: every name, shape, byte, knob and peak
   v
Plan          frozen; `raymerge plan` stops here and prints it
   | merge    units of whole tensors: read, merge, write at their addresses
   v
checkpoint    whole or absent: its index is written last
   | verify   index, headers, lengths, hashes, config

>>> import raymerge
>>> result = raymerge.merge("recipe.yaml", "merged")  # doctest: +SKIP
"""

# A package's first import binds its name here: before the function of the same name, not after.
import raymerge.plan as _plan  # noqa: F401 - for its binding
from raymerge.api import convert, doctor, inspect, load, merge, plan, simulate, verify
from raymerge.options import RunOptions, SimulateOptions
from raymerge.sweep.run import reproduce, sweep

__all__ = [
    "RunOptions",
    "SimulateOptions",
    "convert",
    "doctor",
    "inspect",
    "load",
    "merge",
    "plan",
    "reproduce",
    "simulate",
    "sweep",
    "verify",
]
