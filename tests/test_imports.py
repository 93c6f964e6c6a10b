"""Imports point one way, heavy ones stand in one place, and every public name is documented."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raymerge

ROOT = Path(raymerge.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
EACH_MODULE = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix()
)

BASE = {"errors", "units"}
MODEL = BASE | {"checkpoint", "kernels", "methods", "recipe"}
RUN = MODEL | {"plan", "storage", "runtime", "tokenizer"}
TOP = {
    "api",
    "listing",
    "machine",
    "options",
    "planning",
    "plot",
    "progress",
    "report",
    "simulating",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "checkpoint": BASE,
    "kernels": BASE | {"checkpoint"},
    "methods": BASE | {"checkpoint", "kernels"},
    "recipe": BASE | {"checkpoint", "kernels", "methods"},
    "tokenizer": BASE | {"checkpoint", "recipe"},
    "plan": MODEL | {"tokenizer"},
    "storage": BASE | {"checkpoint"},
    "runtime": RUN,
    "sweep": RUN | {"sweep", "api", "options", "planning", "machine"},
    "api": RUN | TOP,
    "progress": RUN | TOP,
    "machine": RUN | TOP,
    "options": RUN | TOP,
    "planning": RUN | TOP,
    "listing": RUN | TOP,
    "report": RUN | TOP,
    "plot": RUN | TOP,
    "simulating": RUN | TOP,
    "cli": RUN | TOP | {"", "sweep"},
    "": RUN | TOP | {"sweep"},
}
"""Rooms of the package; the empty name is `raymerge` itself."""
HUB = {
    "storage.hub",
    "storage.hub_account",
    "storage.hub_cache",
    "storage.hub_errors",
    "storage.hub_quiet",
    "storage.hub_ranges",
    "storage.hub_retry",
    "storage.hub_upload",
}
THIRD_PARTY: dict[str, set[str]] = {
    "click": {"cli", "cli.options", "cli.simulate", "cli.submit", "cli.sweep"},
    # The engine, which joins a cluster, and the way in for those who do not join it.
    "ray": {
        "runtime.autoscaler",
        "runtime.job_server",
        "runtime.ray_cluster",
        "runtime.ray_counters",
    },
    "aiohttp": {"runtime.job_server"},
    "requests": {"runtime.job_server"},
    # The CUDA kernels, the question whether there is a device, and pickled checkpoints.
    "torch": {
        "kernels.torch_free",
        "kernels.torch_fusion",
        "kernels.torch_groups",
        "kernels.torch_kernels",
        "kernels.torch_ring",
        "kernels.torch_streams",
        "machine",
        "runtime.pickled",
    },
    "rich": {"progress"},
    "lm_eval": {"sweep.evaluation.harness"},
    "optuna": {"sweep.search"},
    "matplotlib": {"plot", "sweep.report.png"},
    "tokenizers": {"tokenizer.vocabulary"},
    "transformers": set(),
    "jinja2": {"recipe.chat_templates", "sweep.report.page"},
    "markupsafe": {"sweep.report.page"},
    "pyarrow": {"storage.arrow", "runtime.ledger", "sweep.tables"},
    "obstore": {
        "storage.bucket",
        "storage.clients",
        "storage.credentials",
        "storage.trial",
        "storage.upload",
    },
    "boto3": {"storage.credentials", "storage.leftovers"},
    "botocore": {"storage.credentials", "storage.leftovers"},
    # Imported only where a location is on the Hub.
    "huggingface_hub": HUB,
    "httpx2": HUB,
}
BANNED = {"utils", "helpers", "common", "misc", "manager", "handler", "processor", "wrapper"}


def dotted(path: Path) -> str:
    """`runtime.unit` for raymerge/runtime/unit.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    return module.partition(".")[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Full names of whatever a module imports, wherever in it, such as `raymerge.plan.build`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_its_rule() -> None:
    assert {room(dotted(path)) for path in MODULES} == MAY_IMPORT.keys()


@EACH_MODULE
def test_imports_point_one_way(path: Path) -> None:
    own = room(dotted(path))
    rooms = {str(child.relative_to(ROOT).with_suffix("")) for child in ROOT.iterdir()}
    for name in imports(path):
        if room(name) != "raymerge":
            continue
        imported = name.removeprefix("raymerge").removeprefix(".").partition(".")[0]
        imported = imported if imported in rooms else ""
        assert imported == own or imported in MAY_IMPORT[own], f"{dotted(path)} imports {name}"


@EACH_MODULE
def test_a_heavy_library_stands_in_one_place(path: Path) -> None:
    for name in imports(path):
        allowed = THIRD_PARTY.get(room(name))
        assert allowed is None or dotted(path) in allowed, f"{dotted(path)} imports {name}"


@EACH_MODULE
def test_no_name_says_nothing(path: Path) -> None:
    assert not set(path.stem.split("_")) & BANNED


def public_definitions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not child.name.startswith("_"):
            yield f"{name}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{name}.{child.name}")


@EACH_MODULE
def test_every_public_name_has_a_docstring(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), path
    for name, node in public_definitions(module, dotted(path)):
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        overloads = [d for d in node.decorator_list if ast.unparse(d) == "overload"]
        assert ast.get_docstring(node) or overloads, f"{name} has no docstring"


@EACH_MODULE
def test_nothing_catches_every_exception(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}"
            names = {
                ast.unparse(kind) for kind in ast.walk(node.type) if isinstance(kind, ast.Name)
            }
            assert "Exception" not in names, f"{path}:{node.lineno}"


def test_the_package_has_what_it_says() -> None:
    assert {"load", "merge", "plan", "verify"} <= set(raymerge.__all__)
    for name in raymerge.__all__:
        assert callable(getattr(raymerge, name))
        assert getattr(raymerge, name).__doc__


def test_the_functions_survive_the_packages_of_their_names() -> None:
    """`raymerge.plan` is a function, and `raymerge.plan.build` a module, in either order."""
    from raymerge.plan.build import build

    assert callable(raymerge.plan)
    assert callable(build)
