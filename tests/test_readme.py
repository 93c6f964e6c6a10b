"""The README says what is: its commands are run, its tables and code compared.

`python -m tests.test_readme --update` writes what the commands print, and the table of methods,
into the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raymerge import errors
from raymerge.listing import listing_json
from raymerge.methods import methods
from raymerge.recipe.parse import TOP_KEYS
from tests.checkpoints import fine_tune, llama_config, tiny_llama_tensors, write_checkpoint

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text()
RAYMERGE = Path(sysconfig.get_path("scripts"), "raymerge")

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METHODS = re.compile(r"(<!-- methods -->\n).*?(<!-- /methods -->)", re.DOTALL)
PROGRESS = re.compile(r"^read .* left\n", re.MULTILINE)
"""Printed every few seconds: a slow machine prints some, a fast one none."""
UNSTABLE = {
    r"\b[0-9a-f]{16}\b": "DIGEST",  # the sources' inodes are part of it
    r"in \d+\.\d s": "in SECONDS s",
}
WRONG = {
    "percent.yaml": ("density: 0.2", "density: 20"),
    "typo.yaml": ("weight: 0.5", "wieght: 0.5"),
}
"""Recipes of the section on errors, each the first one with a mistake."""
FORBIDDEN = {
    "robust",
    "seamless",
    "powerful",
    "comprehensive",
    "simply",
    "just",
    "easy",
    "leverage",
    "cutting-edge",
    "production-ready",
}


def blocks(language: str, text: str = TEXT) -> list[str]:
    return [body for found, body in BLOCK.findall(text) if found == language]


def make_example(folder: Path) -> None:
    """The checkpoints and recipes that the README's commands work on."""
    base = tiny_llama_tensors(0, layers=8, hidden=256, vocab=4096)
    sources = {"base": base, "math": fine_tune(base, 1), "code": fine_tune(base, 2)}
    for name, tensors in sources.items():
        config = llama_config(tensors)
        path = folder / "models" / name
        write_checkpoint(path, tensors, config=config, max_shard_bytes=5_000_000)
    for recipe in blocks("yaml"):
        name = recipe.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(recipe.partition("\n")[2])
    for name, (right, wrong) in WRONG.items():
        (folder / name).write_text((folder / "ties.yaml").read_text().replace(right, wrong))


def run(command: list[str | Path], folder: Path) -> str:
    """What a terminal would show."""
    # One device and one engine, whatever the machine has.
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | hidden
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return PROGRESS.sub("", done.stdout)


def session(commands: list[str], folder: Path) -> str:
    """A console block: each command and what it prints."""
    shown = []
    for command in commands:
        program, *arguments = command.split()
        assert program == "raymerge", command
        shown.append(f"$ {command}\n{run([RAYMERGE, *arguments], folder)}")
    return "".join(shown)


def commands_of(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def method_table() -> str:
    lines = [
        "| method | what it does | sources | base | knobs | paper |",
        "|---|---|---|---|---|---|",
    ]
    for method in listing_json(None):
        knobs = ", ".join(map(knob_text, method["knobs"]))
        lower, upper = method["min_sources"], method["max_sources"]
        number = f"{lower}" if lower == upper else f"{lower} or more"
        base = {"source": "one more source"}.get(method["base"], method["base"])
        # No method says it takes several yet no more than some number.
        assert upper in (None, lower)
        cells = [f"`{method['name']}`", method["summary"], number, base, knobs, method["paper"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def knob_text(knob: Mapping[str, object]) -> str:
    default = knob["default"]
    shown = str(default).lower() if isinstance(default, bool) else f"{default}"
    return f"`{knob['name']}`" if knob["required"] else f"`{knob['name']}: {shown}`"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    make_example(folder)
    return folder


def stable(text: str) -> str:
    for pattern, name in UNSTABLE.items():
        text = re.sub(pattern, name, text)
    return text


def test_the_commands_print_what_the_readme_shows(example: Path) -> None:
    for block in blocks("console"):
        assert stable(session(commands_of(block), example)) == stable(block)


def test_the_python_example_runs(example: Path) -> None:
    program = next(block for block in blocks("python") if block.startswith("import raymerge\n"))
    assert run([sys.executable, "-W", "error", "-c", program], example) == ""


ADD_AND_MERGE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("raymerge.methods.expo", "expo.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import raymerge
raymerge.merge("expo.yaml", "extrapolated", engine="local", device="cpu")
"""


def test_the_method_of_the_readme_merges(example: Path) -> None:
    (file,) = (block for block in blocks("python") if "@span_method" in block)
    (example / "expo.py").write_text(file)
    assert run([sys.executable, "-W", "error", "-c", ADD_AND_MERGE], example) == ""

    name = "model.layers.3.mlp.up_proj.weight"
    base, source, merged = (
        tensor_of(example / path, name).float()
        for path in ("models/base", "models/math", "extrapolated")
    )
    expected = base + torch.tensor(1.3) * (source - base)
    torch.testing.assert_close(merged, expected.bfloat16().float(), rtol=0, atol=0)


def tensor_of(checkpoint: Path, name: str) -> torch.Tensor:
    stored: dict[str, torch.Tensor] = {}
    for path in checkpoint.glob("*.safetensors"):
        stored |= load_file(path)
    return stored[name]


def test_the_table_of_methods_is_the_registry() -> None:
    assert METHODS.search(TEXT), "the README has lost its <!-- methods --> marks"
    assert method_table() in TEXT
    assert f"all its {len(methods())} methods" in TEXT
    cited = TEXT.partition("## Credits")[2]
    for method in methods().values():
        assert f"`{method.name}`" in cited or method.paper == "mergekit"


def test_every_key_of_a_recipe_is_in_its_table() -> None:
    section = TEXT.partition("## The recipe")[2].partition("## Where models lie")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    keys = set(re.findall(r"`(\w+)`", "".join(row for row in rows if "raymerge" not in row)))
    assert keys == set(TOP_KEYS)


def test_the_tree_of_errors_is_the_code_s() -> None:
    assert error_tree() in blocks("text")


def error_tree() -> str:
    lines = (errors.__doc__ or "").splitlines()
    return "".join(f"{line[4:]}\n" for line in lines if line.startswith("    "))


def test_the_tree_of_files_is_what_is_there() -> None:
    tree = next(block for block in blocks("text") if block.startswith("raymerge/\n"))
    names = {line.split()[0]: line.startswith("  ") for line in tree.splitlines()}
    listed = {name for name, nested in names.items() if nested}
    package = ROOT / "raymerge"
    assert listed == {shown(path) for path in package.iterdir() if is_ours(path)}
    for name in names:
        assert (package / name if name in listed else ROOT / name).exists(), name


def shown(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


def is_ours(path: Path) -> bool:
    return not path.name.startswith("_") and (path.is_dir() or path.suffix == ".py")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_it_is_short_and_plain() -> None:
    assert len(TEXT.splitlines()) <= 440
    words = set(re.findall(r"[a-z-]+", TEXT.lower()))
    assert not words & FORBIDDEN


def update() -> None:
    """Write into the README what the commands print now."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_example(folder)
        replaced = replace_blocks("console", lambda body: session(commands_of(body), folder))
    tree = error_tree()
    empty = "```text\n```"
    replaced = replaced.replace(empty, f"```text\n{tree}```")
    table = method_table()
    README.write_text(METHODS.sub(lambda match: match[1] + table + match[2], replaced))


def replace_blocks(language: str, remake: Callable[[str], str]) -> str:
    def remade(match: re.Match[str]) -> str:
        return f"```{language}\n{remake(match[2])}```" if match[1] == language else match[0]

    return BLOCK.sub(remade, TEXT)


if __name__ == "__main__" and sys.argv[1:] == ["--update"]:
    update()
