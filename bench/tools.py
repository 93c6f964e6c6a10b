"""The two tools as commands, and the recipes both are given."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from bench.models import NAMES

RAYMERGE_FLAGS = ("--engine", "local", "--workers", "2", "--memory", "2GiB", "--quiet", "--json")
PEER_FLAGS = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet")
"""Its defaults otherwise: torch takes every core, and neither --num-threads nor --async-write made
mergekit 0.1.5 any faster on two."""

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A merge to time: its recipe, and what is promised for it."""

    name: str
    sources: tuple[str, ...] = NAMES[1:]
    knobs: dict[str, float] = field(default_factory=dict)
    """For each source."""
    shared_knobs: dict[str, float] = field(default_factory=dict)
    base: bool = True
    min_speedup: float | None = None
    """mergekit's time over ours, at least."""
    max_over_floor: float | None = None
    """Our time over `cat` of the sources and writing the output, at most."""

    @property
    def read(self) -> tuple[str, ...]:
        """The checkpoints it reads, each once."""
        return tuple(
            name for name in NAMES if name in self.sources or (self.base and name == "base")
        )

    def recipe(self, models: Path) -> str:
        """The YAML for checkpoints under `models`, in words both tools know."""
        recipe: dict[str, Any] = {"merge_method": self.name}
        if self.base:
            recipe["base_model"] = str(models / "base")
        recipe["models"] = [
            {"model": str(models / name), **({"parameters": self.knobs} if self.knobs else {})}
            for name in self.sources
        ]
        if self.shared_knobs:
            recipe["parameters"] = self.shared_knobs
        recipe["dtype"] = "bfloat16"
        return yaml.dump(recipe, Dumper=_PlainDumper, sort_keys=False)


class _PlainDumper(yaml.SafeDumper):
    """Writes every mapping out, where the stock one would use anchors for equal knobs."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


DELTA_SPEEDUP, OTHER_SPEEDUP = 20.0, 5.0
"""How many times faster than mergekit every method is to be, by family."""
PAIR = NAMES[1:3]


def _delta(name: str, **knobs: float) -> Method:
    return Method(name=name, knobs={"weight": 0.5, **knobs}, min_speedup=DELTA_SPEEDUP)


METHODS = (
    Method(name="linear", knobs={"weight": 1.0}, base=False, min_speedup=6.0, max_over_floor=2.5),
    Method(
        name="slerp",
        sources=NAMES[:2],
        shared_knobs={"t": 0.5},
        min_speedup=8.0,
        max_over_floor=3.0,
    ),
    Method(
        name="nuslerp",
        sources=PAIR,
        knobs={"weight": 1.0},
        base=False,
        min_speedup=OTHER_SPEEDUP,
    ),
    Method(name="multislerp", knobs={"weight": 1.0}, base=False, min_speedup=OTHER_SPEEDUP),
    Method(name="karcher", base=False, min_speedup=OTHER_SPEEDUP),
    Method(name="passthrough", sources=NAMES[1:2], base=False, min_speedup=OTHER_SPEEDUP),
    Method(name="model_stock", min_speedup=OTHER_SPEEDUP),
    Method(
        name="nearswap", sources=NAMES[1:2], shared_knobs={"t": 1e-3}, min_speedup=OTHER_SPEEDUP
    ),
    Method(name="arcee_fusion", sources=NAMES[1:2], min_speedup=OTHER_SPEEDUP),
    Method(name="ram", min_speedup=OTHER_SPEEDUP),
    Method(name="ramplus_tl", min_speedup=OTHER_SPEEDUP),
    Method(name="sce", shared_knobs={"select_topk": 0.5}, min_speedup=OTHER_SPEEDUP),
    Method(name="task_arithmetic", knobs={"weight": 0.4}, min_speedup=OTHER_SPEEDUP),
    _delta("dare_linear", density=0.5),
    Method(
        name="dare_ties",
        knobs={"weight": 1.0, "density": 0.5},
        min_speedup=12.0,
        max_over_floor=4.0,
    ),
    _delta("breadcrumbs", density=0.5, gamma=0.01),
    _delta("breadcrumbs_ties", density=0.5, gamma=0.01),
    _delta("della", density=0.5, epsilon=0.1),
    _delta("della_linear", density=0.5, epsilon=0.1),
    Method(
        name="ties", knobs={"weight": 1.0, "density": 0.2}, min_speedup=25.0, max_over_floor=4.0
    ),
)
TIES = METHODS[-1]
LINEAR_OF_TWO = Method(name="linear", sources=NAMES[1:3], knobs={"weight": 1.0}, base=False)


def find_raymerge() -> Command | None:
    """The entry point beside this Python, else the module; None where neither is there."""
    if find_spec("raymerge.cli") is None:
        return None
    script = _beside("raymerge")
    return (script,) if script else (sys.executable, "-m", "raymerge.cli")


def find_mergekit() -> Command | None:
    """`mergekit-yaml` beside this Python, or None."""
    script = _beside("mergekit-yaml")
    return (script,) if script else None


def _beside(name: str) -> str | None:
    path = Path(sysconfig.get_path("scripts"), name)
    return str(path) if path.is_file() else None
