"""What a sweep saves: TIES trials over weights and lambda, in one read, against merges one by one.

    python -m bench.sweep [FOLDER]

Prints a line for 4 and for 8 trials. The floor of either is what it takes to write and fsync the
outputs, as either does: one after the other is removed again, or all are there in the end. That is
measured before and after the sweep, and the lesser counts. What is left of the time is compared.
Last comes what one run of mergekit takes, where it is installed. FOLDER is best in memory.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

import raymerge
from bench.measure import Run, cat, run, write
from bench.models import LlamaShape, make_family
from bench.tools import PEER_FLAGS, find_mergekit

LLAMA_400M = LlamaShape(
    hidden=1024, layers=24, heads=16, kv_heads=8, intermediate=4096, vocab=32_000
)
"""0.41 G parameters, 0.82 GB."""
SWEEP = """
import sys
import raymerge
from raymerge.sweep.rounds import Rounds
from raymerge.sweep.trial import Trial

loaded = [raymerge.load(path) for path in sys.argv[2:]]
trials = [
    Trial(name=str(i), recipe=one, text=one.text, out=f"{sys.argv[1]}/{i}", values={})
    for i, one in enumerate(loaded)
]
found = []
Rounds({"engine": "local", "device": "cpu"}, overwrite=False).merge(trials, found.append)
assert all(one.result for one in found), found
print(sum(one.result.bytes_read for one in found), file=sys.stderr)
"""


def recipes(folder: Path, number: int) -> list[Path]:
    """TIES over a base and three fine-tunes: half as many weights as trials, two lambdas."""
    paths = []
    for i in range(number):
        lines = [
            "merge_method: ties",
            f"base_model: {folder}/base",
            "models:",
            *(f"  - model: {folder}/finetune-{k}" for k in (1, 2, 3)),
            "parameters:",
            f"  weight: {0.2 + 0.1 * (i // 2)}",
            "  density: 0.2",
            f"  lambda: {(0.7, 1.0)[i % 2]}",
        ]
        paths.append(folder / f"recipe-{i}.yaml")
        paths[-1].write_text("\n".join(lines))
    return paths


def measure(folder: Path, number: int) -> tuple[str, float]:
    """One line of the report, and the seconds of the sweep."""
    paths = recipes(folder, number)
    out = folder / "out"
    single_floor_s = single_s = 0.0
    for path in paths:
        single_floor_s += write(folder / "floor", LLAMA_400M.num_bytes)
        merged = _checked(run(_merge(path, out)))
        single_s += merged.wall_s
        shutil.rmtree(out)
    before_s = _write_together(folder / "floors", number)
    swept = _checked(run([sys.executable, "-c", SWEEP, out, *paths]))
    single_read = raymerge.plan(paths[0]).bytes_read
    shutil.rmtree(out)
    # What the first of them fills may be memory that a virtual machine has yet to be given.
    floor_s = min(before_s, _write_together(folder / "floors", number))
    sources = sorted(folder.glob("*/*.safetensors"))
    least_s = cat(sources) + floor_s
    read = int(swept.complaint.splitlines()[-1])
    line = (
        f"{number} trials: sweep {swept.wall_s:.2f} s ({swept.cpu_s:.1f} s of CPU), "
        f"writes {floor_s:.2f} s; {number} merges {single_s:.2f} s, writes {single_floor_s:.2f} s; "
        f"less the writes {(swept.wall_s - floor_s) / (single_s - single_floor_s):.2f}; "
        f"{swept.wall_s / least_s:.2f} of cat and writes; "
        f"read {read / single_read:.2f} of what a merge reads; {swept.anon_bytes / 2**20:.0f} MiB"
    )
    return line, swept.wall_s


def _compile(folder: Path) -> None:
    """Merge and sweep once, so that the kernels are in numba's cache."""
    paths, out = recipes(folder, 2), folder / "out"
    swept: list[str | Path] = [sys.executable, "-c", SWEEP, out, *paths]
    for command in (_merge(paths[0], out), swept):
        _checked(run(command))
        shutil.rmtree(out)


def _write_together(folder: Path, number: int) -> float:
    """Seconds to write as many outputs, all of which stay until the last one is written."""
    folder.mkdir()
    paths = [folder / str(i) for i in range(number)]
    floor_s = sum(write(path, LLAMA_400M.num_bytes, keep=True) for path in paths)
    shutil.rmtree(folder)
    return floor_s


def _merge(path: Path, out: Path) -> list[str | Path]:
    command: list[str | Path] = [sys.executable, "-m", "raymerge.cli", "merge", path, out]
    command += ["--quiet"]
    return [*command, "--engine", "local", "--device", "cpu"]


def _checked(done: Run) -> Run:
    if not done.ok:
        raise SystemExit(done.complaint)
    return done


def main() -> None:
    """Make the models where they are not, and measure."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/dev/shm/raymerge-sweep")  # noqa: S108
    make_family(folder, LLAMA_400M)
    _compile(folder)
    took_s = {}
    for number in (4, 8):
        line, took_s[number] = measure(folder, number)
        click.echo(line)
    if peer := find_mergekit():
        path, out = recipes(folder, 1)[0], folder / "out"
        path.write_text(path.read_text() + "\ndtype: bfloat16\n")
        peer_s = _checked(run([*peer, path, out, *PEER_FLAGS])).wall_s
        shutil.rmtree(out)
        ratios = (f"{n} of them are {n * peer_s / s:.0f} sweeps" for n, s in took_s.items())
        click.echo(f"mergekit {peer_s:.2f} s for one: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
