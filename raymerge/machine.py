"""What this machine offers, and what a run takes of it when not told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raymerge.errors import PlanError

GPU_THREADS = 2
"""Units in progress on a GPU: one's reads and writes beside the other's kernels."""
MEMORY_SHARE = 0.6
"""Of the memory there is, by default. The rest is page cache and whoever else is at home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a run is going to use."""

    engine: Literal["local", "ray"]
    why: str
    """Why this engine, for the user."""
    address: str | None
    device: Literal["cpu", "cuda"]
    processes: int | None
    """Worker processes; None leaves them to the Ray engine."""
    threads: int
    """Units in progress at once in a worker process."""
    memory_bytes: int
    """Budget of one worker process."""


def inspect_machine(
    *,
    engine: Literal["auto", "local", "ray"],
    address: str | None,
    device: Literal["auto", "cpu", "cuda"],
    workers: int | None,
    memory_bytes: int | None,
) -> Machine:
    """Choose what was left to choose: engine, device, workers, budget."""
    address = address or os.environ.get("RAY_ADDRESS")
    gpus = num_gpus()
    if engine == "auto":
        if address:
            chosen, why = "ray", f"there is a cluster at {address}"
        elif gpus > 1 and device != "cpu":
            chosen, why = "ray", f"there are {gpus} GPUs"
        else:
            chosen, why = "local", "no cluster address, and at most one GPU"
    else:
        chosen, why = engine, "as asked"
    on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
    if on_gpu and chosen == "local":
        on_gpu = _has_cuda(required=device == "cuda")
    cpus = num_cpus()
    processes = workers if chosen == "ray" else 1
    if chosen == "local":
        threads = workers or (GPU_THREADS if on_gpu else cpus)
    else:
        threads = GPU_THREADS if on_gpu else max(1, cpus // (workers or 1))
    # Left to Ray there is one worker per GPU of a node, or one per node.
    sharing = processes or (max(1, gpus) if on_gpu else 1)
    share = int(memory_limit_bytes() * MEMORY_SHARE) // sharing
    return Machine(
        engine="ray" if chosen == "ray" else "local",
        why=why,
        address=address if chosen == "ray" else None,
        device="cuda" if on_gpu else "cpu",
        processes=processes,
        threads=threads,
        memory_bytes=memory_bytes or share,
    )


def _has_cuda(*, required: bool) -> bool:
    """Whether torch can use a CUDA device of this machine; PlanError if one is required."""
    import torch

    if torch.cuda.is_available():
        return True
    if required:
        raise PlanError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device on this machine; write "
            "--device cpu, or install a CUDA build of torch where there is a device"
        )
    return False


def num_cpus() -> int:
    """CPUs this process may use: its affinity, and the quota of its cgroups."""
    counts = [len(os.sched_getaffinity(0))]
    for folder in _cgroups():
        try:
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):
            # No such limit, or `max`.
            continue
        counts.append(max(1, round(quota / period)))
    return min(counts)


def num_gpus() -> int:
    """NVIDIA devices visible to this process, without loading torch or CUDA."""
    return len(gpu_names())


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the devices that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if visible is None or not present:
        return [str(number) for number in range(present)]
    return [name for name in visible.split(",") if name not in {"", "-1"}]


def memory_limit_bytes() -> int:
    """The smallest of physical memory and the limits of this process's cgroups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    paths = [folder / "memory.max" for folder in _cgroups()]
    for path in (*paths, Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            # Another cgroup version, or `max`: no limit.
            continue
    return min(limits)


def _cgroups() -> list[Path]:
    """This process's cgroup (version 2) and those above it."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [root]
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    inside = Path(own.lstrip("/"))
    return [root / inside, *(root / above for above in inside.parents)]
