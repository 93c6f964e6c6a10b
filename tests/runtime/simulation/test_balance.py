"""What the issue of the cluster promises: 64 GPUs are at work from the first unit to the last."""

from __future__ import annotations

from math import prod

import pytest

from bench.models import LLAMA_405B
from bench.moe import MOE_671B
from bench.shards import Tensor
from raymerge.checkpoint.dtypes import DType
from raymerge.plan.build import Plan
from raymerge.runtime.simulation.fleet import CORE_GBPS, Fleet
from raymerge.runtime.simulation.result import Simulation, simulate
from tests.plans import catalog, plan, recipe

LEAST_UTILISATION, MOST_IDLE = 0.9, 0.05
RATES = {
    "kernels that take longest": (50.0, 2.0),
    "lines that take longest": (12.5, 100.0),
    "both alike": (12.5, 5.0),
}
"""GB/s of a node's line each way, and of a GPU's kernels."""
EXPERTS = 24
"""Of 512: as many bytes in fewer tensors are planned sooner, and a unit still has several."""


def planned(tensors: list[Tensor], method: str, *, afar: bool) -> Plan:
    """A merge of three fine-tunes, planned for GPUs."""
    held = {name: (DType.BF16, shape) for name, shape in tensors}
    base = "base" if method == "ties" else None
    merge = recipe(method, "a", "b", "c", base=base, parameters={"density": 0.2} if base else {})
    labels = ["a", "b", "c", *([base] if base else [])]
    return plan(
        merge,
        [catalog(label, held) for label in labels],
        device="cuda",
        memory_bytes=64 * 2**30,
        whole_shards=afar,
        uploads=afar,
        remote=afar,
        hold=False,
    )


def mixture() -> list[Tensor]:
    """The 671B mixture with its experts joined, so that it has a twentieth of the tensors."""
    joined: dict[str, int] = {}
    rest: list[Tensor] = []
    for name, shape in MOE_671B.tensors():
        before, found, after = name.partition(".experts.")
        if not found:
            rest.append((name, shape))
            continue
        number, _, part = after.partition(".")
        key = f"{before}.experts.{int(number) * EXPERTS // MOE_671B.experts}.{part}"
        joined[key] = joined.get(key, 0) + prod(shape)
    return [*rest, *((name, (size // 1024, 1024)) for name, size in joined.items())]


MODELS = {"405B dense": LLAMA_405B.tensors, "671B mixture": mixture}


def run(plan: Plan, line_gbps: float, kernel_gbps: float) -> Simulation:
    return simulate(
        plan,
        Fleet(
            nodes=8,
            gpus_per_node=8,
            cpus_per_node=64,
            threads=2,
            read_gbps=line_gbps,
            write_gbps=line_gbps,
            merge_gbps=dict.fromkeys(CORE_GBPS, kernel_gbps),
        ),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("afar", [True, False], ids=["objects", "files"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_64_gpus_are_at_work_to_the_end(model: str, method: str, *, afar: bool) -> None:
    merge = planned(MODELS[model](), method, afar=afar)
    for name, (line_gbps, kernel_gbps) in RATES.items():
        found = run(merge, line_gbps, kernel_gbps)
        assert found.workers == 64
        assert found.bytes_written == pytest.approx(merge.bytes_written, rel=1e-3), name
        assert found.bytes_read == pytest.approx(merge.bytes_read, rel=1e-3), name
        assert found.utilisation >= LEAST_UTILISATION, (name, found)
        assert found.idle_tail <= MOST_IDLE, (name, found)
        # Sweeps of which one reads and another writes leave a line idle in between.
        if method == "linear":
            assert found.bound_share >= LEAST_UTILISATION, (name, found)
