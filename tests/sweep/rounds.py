"""Trials of recipes, merged in rounds, and held against a merge of each recipe alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import raymerge
from raymerge.options import RunOptions
from raymerge.sweep.rounds import Outcome, Rounds
from raymerge.sweep.trial import Trial

LOCAL: RunOptions = {"engine": "local", "device": "cpu", "workers": 2, "shard_bytes": 4000}


def trials(recipes: Mapping[str, Path], folder: Path) -> list[Trial]:
    """A trial of each recipe, which goes into the folder under its name."""
    loaded = {name: raymerge.load(path) for name, path in recipes.items()}
    return [
        Trial(name=name, recipe=one, text=one.text, out=str(folder / name), values={})
        for name, one in loaded.items()
    ]


def merge(round_: Iterable[Trial], options: RunOptions = LOCAL, **how: Any) -> dict[str, Outcome]:
    """What becomes of each trial of one round."""
    found: dict[str, Outcome] = {}
    rounds = Rounds(options, overwrite=how.pop("overwrite", False), **how)
    rounds.merge(list(round_), lambda outcome: found.update({outcome.trial.name: outcome}))
    return found


def assert_equal_to_own(
    found: Mapping[str, Outcome], folder: Path, options: RunOptions = LOCAL
) -> int:
    """Each trial is what a merge of its recipe is; returns the bytes those read in all."""
    read = 0
    for name, outcome in found.items():
        assert outcome.error is None, (name, outcome.error)
        assert outcome.result is not None
        own = raymerge.merge(outcome.trial.recipe, folder / name, **options)
        assert outcome.result.shards == own.shards, name
        assert outcome.result.digest == own.digest, name
        assert outcome.result.bytes_written == own.bytes_written, name
        assert files(Path(outcome.result.output)) == files(folder / name), name
        read += own.bytes_read
    return read


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a checkpoint but its ledger, which has times in it."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.suffix != ".parquet"
    }


def read_bytes(found: Mapping[str, Outcome]) -> int:
    """What a round has read."""
    return sum(one.result.bytes_read for one in found.values() if one.result)
