"""The same models on this disk, in buckets and on a Hub, and recipes that read them anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import raymerge
from raymerge.runtime.driver import MergeResult
from tests import sites
from tests.adapters import factors, modules_of, write_adapter
from tests.conftest import METHOD_KNOBS, NUM_SOURCES, WITHOUT_BASE, Place
from tests.e2e.test_vocabularies import ORDER, write_models
from tests.servers.hub_state import Hub

SHARD_BYTES = 4000
MODELS = ("base", "a", "b", "lora", "words/base", "words/a", "words/b")
Where = Callable[[str], str]
"""From the name of a model, or of an output, to its location."""


def _models(*names: str) -> list[dict[str, str]]:
    return [{"model": f"<{name}>"} for name in names]


def _of_method(method: str) -> dict[str, Any]:
    base = {} if method in WITHOUT_BASE else {"base_model": "<base>"}
    models = _models(*("a", "b")[: NUM_SOURCES.get(method, 2)])
    knobs = {"parameters": METHOD_KNOBS[method]}
    return {"merge_method": method, **base, "models": models, **knobs}


def _words(policy: str) -> dict[str, Any]:
    models = _models(*(f"words/{name}" for name in ORDER))
    return {**_of_method("linear"), "models": models, "tokenizer_source": policy}


def _layers(model: str, start: int, stop: int) -> dict[str, Any]:
    return {"sources": [{"model": f"<{model}>", "layer_range": [start, stop]}]}


METHODS = {method: [_of_method(method)] for method in METHOD_KNOBS}
FEATURES = {
    "trim over the model": [{**_of_method("ties"), "trim": "model"}],
    "an adapter": [{**_of_method("ties"), "models": _models("base>+<lora", "b")}],
    "slices": [{"merge_method": "passthrough", "slices": [_layers("a", 0, 2), _layers("b", 1, 2)]}],
    "stages": [
        {**_of_method("slerp"), "name": "first"},
        {**_of_method("dare_ties"), "models": [{"model": "first"}, *_models("b")]},
    ],
    "words of all": [_words("union")],
    "words of one": [_words("<words/b>")],
}
CASES: Mapping[str, list[dict[str, Any]]] = {**METHODS, **FEATURES}
"""Documents of recipes; `<name>` stands for the location of a model."""


@dataclass(slots=True)
class Elsewhere:
    """Kinds of places, and where models and outputs lie in each."""

    place: Place
    hub: Hub
    where: dict[str, Where] = field(default_factory=dict)
    """By kind of place: `path`, `s3`, `az`, `gs`, `hf`."""
    _merged: dict[str, dict[str, str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def fill(self, kind: str, where: Where) -> None:
        """Copy the models, which lie at `path`, to places of another kind."""
        self.where[kind] = where
        for name in MODELS:
            if kind == "hf":
                sites.on_hub(self.place / name, self.hub, where(name).removeprefix("hf://"))
            elif kind != "path":
                sites.store(self.place / name, where(name))

    def recipe(self, case: str, kind: str) -> Path:
        """A recipe over the models at a kind of place."""
        where = self.where[kind]
        texts = [
            re.sub("<([^<>]+)>", lambda found: where(found[1]), json.dumps(document))
            for document in CASES[case]
        ]
        path = self.place / f"{case.replace(' ', '-')}-{kind}.yaml"
        path.write_text("\n---\n".join(texts) + "\n")
        return path

    def out(self, kind: str) -> str:
        """A destination where nothing is yet."""
        return self.where[kind](f"out-{next(self._numbers)}")

    def reference(self, case: str) -> Mapping[str, str]:
        """Hashes of a case's shards, merged from disk to disk on the local engine."""
        if case not in self._merged:
            out = self.out("path")
            merge(self.recipe(case, "path"), out)
            self._merged[case] = sites.hashes(self.found(out))
        return self._merged[case]

    def found(self, out: str) -> dict[str, bytes]:
        """The files at a destination."""
        if out.startswith("hf://"):
            return self.hub.repos[out.removeprefix("hf://")].files()
        if "://" in out:
            return sites.stored(out)
        return {path.name: path.read_bytes() for path in Path(out).iterdir()}


def write_all(place: Place) -> None:
    """Write the models to a disk."""
    base = place.llamas()
    drawn = factors(modules_of(base, "q_proj", "down_proj"), seed=3, rank=4)
    write_adapter(place / "lora", drawn, r=4)
    words = Place(place / "words")
    words.path.mkdir()
    write_models(words)


def merge(recipe: Path, out: str, **options: Any) -> MergeResult:
    """Merge on two CPU threads or workers into several shards."""
    options = {"engine": "local", "workers": 2, "memory_bytes": 2**30, **options}
    return raymerge.merge(recipe, out, device="cpu", shard_bytes=SHARD_BYTES, **options)
