"""What all tests share: Hypothesis profiles, and a folder in which to make, merge and compare."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from raymerge.plan.build import Plan
from raymerge.runtime.settings import RunSettings
from raymerge.runtime.settings import run_settings as settings_of
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors, write_checkpoint
from tests.peer.mergekit import Mergekit, find_python

pytest_plugins = ["tests.servers.fixtures", "tests.servers.hub_fixture"]

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=300, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

MEMORY = Path("/dev/shm")
ROOM_BYTES = 3 * 2**30
"""What tests may have lying about at once, and some."""
LONG_FILES = (
    "e2e/test_submit.py", "e2e/test_engines.py", "e2e/test_namespaces.py",
    "runtime/test_cluster.py", "e2e/test_storage.py",
    "soak/test_soak.py", "e2e/test_stages_combined.py", "e2e/test_storage_interrupted.py",
    "e2e/test_nodes.py", "e2e/test_memory.py", "e2e/test_interrupted.py",
    "storage/test_hub_faults.py", "e2e/test_killed.py", "cluster/test_files.py", "test_demo.py",
    "e2e/test_no_secrets.py", "runtime/test_fetching.py", "e2e/test_stages.py",
    "storage/test_store_contract.py", "e2e/test_adapters.py", "e2e/test_storage_ray.py",
)  # fmt: skip
"""The longest first: one that takes a minute, begun last, would have the other half wait."""


def pytest_configure() -> None:
    """Have folders of tests in memory, where there is room: a small merge waits for syncs only.

    And let commands that tests start be interrupted: a shell's background job ignores SIGINT, and
    so would whatever it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have long files first, each in the order of its tests."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


METHOD_KNOBS: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "breadcrumbs": {"weight": 0.6, "density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"weight": 0.6, "density": 0.4, "gamma": 0.1, "rescale": "l1"},
    "dare_linear": {"weight": 0.6, "density": 0.4},
    "dare_ties": {"weight": 0.6, "density": 0.4, "rescale": "l1"},
    "della": {"weight": 0.6, "density": 0.4, "rescale": "l1"},
    "della_linear": {"weight": 0.6, "density": 0.4},
    "karcher": {"max_iter": 5},
    "linear": {"weight": 0.6},
    "model_stock": {"filter_wise": True},
    "multislerp": {"weight": 0.6},
    "nearswap": {"t": 0.005},
    "nuslerp": {"weight": 0.6, "nuslerp_flatten": False},
    "passthrough": {"scale": 0.9},
    "ram": {"epsilon": 0.01},
    "ramplus_tl": {"r": 0.5, "alpha": 0.8, "epsilon": 0.01},
    "sce": {"select_topk": 0.4},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": 0.6, "lambda": 0.8},
    "ties": {"weight": 0.6, "density": 0.4, "rescale": "l1"},
}
"""Knobs under which a method takes all its passes; `test_every_method_is_held_to_this` counts."""
NUM_SOURCES = {"arcee_fusion": 1, "nearswap": 1, "passthrough": 1, "slerp": 1}
"""Of the methods that do not take any number."""
WITHOUT_BASE = frozenset({"karcher", "linear", "passthrough"})


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left behind."""

    rc: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error's fields, of a command with `--json`."""
        return self.json["error"]


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with checkpoints, recipes and outputs. Sources are the folders' names."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def model(self, name: str, tensors: Mapping[str, Tensor], **options: Any) -> Path:
        """Write a checkpoint in place of any other; `options` are those of `write_checkpoint`."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        return write_checkpoint(self.path / name, tensors, **options)

    def llamas(self, number: int = 2, **options: Any) -> dict[str, Tensor]:
        """Write `base` and its fine-tunes `a`, `b`, `c` with configs; returns the base."""
        base = tiny_llama_tensors(0, **options)
        tied = options.get("tied", False)
        self.model("base", base, config=llama_config(base, tied=tied), max_shard_bytes=9000)
        for seed, name in enumerate("abc"[:number], start=1):
            tuned = fine_tune(base, seed)
            self.model(name, tuned, config=llama_config(tuned, tied=tied), max_shard_bytes=12_000)
        return base

    def recipe(
        self,
        method: str,
        models: Mapping[str, Mapping[str, Any]] | Sequence[str] = ("a", "b"),
        *,
        base: str | None = None,
        name: str = "recipe.yaml",
        **top: Any,
    ) -> Path:
        """Write a recipe; models and base are names of folders here."""
        knobs = models if isinstance(models, Mapping) else {model: {} for model in models}
        document: dict[str, Any] = {"merge_method": method}
        if base is not None:
            document["base_model"] = str(self.path / base)
        document["models"] = [
            {"model": str(self.path / model), **({"parameters": dict(own)} if own else {})}
            for model, own in knobs.items()
        ]
        path = self.path / name
        path.write_text(yaml.safe_dump({**document, **top}, sort_keys=False))
        return path

    def any_recipe(self, method: str, **top: Any) -> Path:
        """A recipe of `method` over `base`, `a`, `b` with knobs that take all its passes."""
        models = ("a", "b")[: NUM_SOURCES.get(method, 2)]
        base = None if method in WITHOUT_BASE else "base"
        top = {"parameters": METHOD_KNOBS[method], **top}
        return self.recipe(method, models, base=base, name=f"{method}.yaml", **top)

    def run(self, *arguments: object) -> Done:
        """The command line, in this process."""
        from raymerge.cli import main

        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        # The command keeps numba from importing scipy, which others in this process may want.
        if "scipy" in sys.modules and sys.modules["scipy"] is None:
            del sys.modules["scipy"]
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def merge(self, recipe: Path, out: str = "out", *arguments: object) -> Done:
        """`raymerge merge` on two CPU threads, in this process."""
        machine = ("--engine", "local", "--device", "cpu", "--workers", 2)
        return self.run("merge", recipe, self.path / out, "--quiet", *machine, *arguments)

    def merged(self, recipe: Path, out: str = "out", *arguments: object) -> dict[str, Tensor]:
        """The tensors of a merge, which has to succeed."""
        done = self.merge(recipe, out, *arguments)
        assert done.rc == 0, done.err
        return read_tensors(self.path / out)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by the real safetensors library."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def raw(tensor: Tensor) -> bytes:
    """A tensor's bytes as a checkpoint stores them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def shard_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every shard."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.safetensors"))
    }


def spawn(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "raymerge.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 60) -> Done:
    """Wait for a command."""
    out, err = process.communicate(timeout=timeout_s)
    return Done(process.returncode, out, err)


@pytest.fixture(scope="session")
def mergekit() -> Iterator[Mergekit]:
    """mergekit, running."""
    python = find_python()
    if python is None:
        pytest.skip("needs mergekit-yaml beside this Python, or RAYMERGE_PEER=/path/to/it")
    with Mergekit(python) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty folder to make checkpoints in."""
    return Place(tmp_path)


def run_settings(plan: Plan, folder: Path) -> RunSettings:
    """What a worker is told of a plan whose shards are filled in `folder`."""
    return settings_of(plan, str(folder), "cpu")
