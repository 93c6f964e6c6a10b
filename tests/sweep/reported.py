"""Sweeps to report on: records as a ledger would have them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from raymerge.sweep.record import Evaluated, TrialRecord
from raymerge.sweep.trial import Value


def evaluated(trial: str, scores: Mapping[str, float], **options: Any) -> Evaluated:
    """One evaluation on all examples, in two seconds, unless told otherwise."""
    return Evaluated(
        **{
            "trial": trial,
            "split": "search",
            "subset": None,
            "scores": scores,
            "error": None,
            "seconds": 2.0,
            "worker": "host:1",
            **options,
        }
    )


def record(
    values: Mapping[str, Value] | None = None,
    scores: Mapping[str, float] | None = None,
    **options: Any,
) -> TrialRecord:
    """A merged trial with one evaluation, ranked by the mean, unless told otherwise."""
    values = values or {}
    name = options.pop("name", "_".join(f"{k}={v}" for k, v in values.items()) or "trial")
    return TrialRecord(
        **{
            "name": name,
            "digest": "0123456789abcdef",
            "values": values,
            "seed": 7,
            "text": f"merge_method: linear\n# {name}\n",
            "out": f"out/{name}",
            "state": "merged",
            "error": None,
            "seconds": 1.25,
            "bytes_read": 3 << 20,
            "bytes_written": 10 << 20,
            "evaluations": (evaluated(name, scores),) if scores else (),
            "missed": (),
            "score": sum(scores.values()) / len(scores) if scores else None,
            **options,
        }
    )


def failed(name: str = "broken", error: str = "a.safetensors holds NaN", **options: Any) -> Any:
    """A trial that came to nothing."""
    nothing = {"digest": "", "seconds": 0.0, "bytes_read": 0, "bytes_written": 0}
    return record(**{"name": name, "error": error, "state": "failed", **nothing, **options})


GATES = {"math": 0.5}


def grid(weights: int = 6, densities: Sequence[float] = (0.2, 0.5, 0.8)) -> list[TrialRecord]:
    """A grid over w and density, two tasks, one gate, three kept, one failed, one stopped."""
    found = []
    for density in densities:
        for number in range(weights):
            w = number / (weights - 1)
            math_, code = 0.3 + 0.5 * math.sin(1.6 * w), 0.75 - 0.45 * w * w - 0.1 * density
            one = record({"w": w, "density": density}, {"math": math_, "code": code})
            if math_ < GATES["math"]:
                one = replace(one, missed=(f"math is {math_:.4g}, below 0.5",), state="removed")
            found.append(one)
    found.sort(key=lambda one: -(one.score or 0.0))
    clear = [one for one in found if not one.missed]
    for one in clear:
        final = (evaluated(one.name, {"math": 0.6125, "code": 0.58}, split="final"),)
        is_kept = one in clear[:3]
        found[found.index(one)] = replace(
            one,
            state="kept" if is_kept else "removed",
            evaluations=one.evaluations + (final if is_kept else ()),
        )
    early = record({"w": 0.33, "density": 0.2}, name="early", state="removed", score=0.41)
    tried = evaluated("early", {"math": 0.4, "code": 0.42}, subset=64)
    found.append(replace(early, evaluations=(tried,)))
    return [*found, failed(values={"w": 2.0, "density": 0.2})]


def many(number: int = 200, axes: int = 6, tasks: int = 3) -> list[TrialRecord]:
    """A random search over numbers, one of them spread over powers of ten, and words."""
    draw = random.Random(0)
    found = []
    for _ in range(number):
        layers = {f"layer_{n}": draw.random() for n in range(axes - 3)}
        values: dict[str, Value] = {**layers}
        values["rate"] = 10 ** draw.uniform(-5, -1)
        values["method"] = draw.choice(["ties", "dare_linear", "linear"])
        values["normalize"] = draw.random() < 0.5
        base = 0.8 - sum((v - 0.4) ** 2 for v in layers.values())
        scores = {f"task_{n}": base + draw.gauss(0, 0.05) for n in range(tasks)}
        found.append(record(values, scores, name=f"trial-{draw.getrandbits(40):010x}"))
    best = sorted(found, key=lambda one: -(one.score or 0))[:5]
    return [replace(one, state="kept" if one in best else "removed") for one in found]


def path(barrier: float = 0.4) -> list[TrialRecord]:
    """Accuracy along the line between two checkpoints."""
    return [
        record({"t": t / 10}, {"digits": 0.9 - t / 100 - barrier * math.sin(math.pi * t / 10) ** 2})
        for t in range(11)
    ]


def fronts() -> list[TrialRecord]:
    """The grid, ranked by fronts over both tasks."""
    found = [one for one in grid() if one.score is not None]
    best = sorted(found, key=lambda one: (bool(one.missed), -(one.score or 0.0)))
    return [replace(one, score=float(-(rank // 5)), rank=rank + 1) for rank, one in enumerate(best)]
