"""Scores of trials: which program gives them, and how it is run so that it can harm nobody.

keys         the block's keys: `parse`
model        what they say: `Evaluating`
fingerprint  what that is, down to the files it names: `fingerprint`
calls        what is run for a checkpoint
process      under a time limit, in a process group of its own
guard        which ends with the driver, however that ends
scores       what it printed
pool         several at once, here or on the cluster: `Pool`
"""

from __future__ import annotations

from raymerge.sweep.evaluation.fingerprint import Fingerprint, fingerprint
from raymerge.sweep.evaluation.keys import KEYS, parse
from raymerge.sweep.evaluation.model import (
    AtLeast,
    Command,
    Evaluating,
    Function,
    Harness,
    Mean,
    Pareto,
    Rungs,
    Weighted,
)
from raymerge.sweep.evaluation.pool import Pool, evaluate

__all__ = [
    "KEYS",
    "AtLeast",
    "Command",
    "Evaluating",
    "Fingerprint",
    "Function",
    "Harness",
    "Mean",
    "Pareto",
    "Pool",
    "Rungs",
    "Weighted",
    "evaluate",
    "fingerprint",
    "parse",
]
