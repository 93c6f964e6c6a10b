"""The run's ledger: two Parquet tables beside the output, one row per tensor and one per unit.

    raymerge-tensors.parquet   what each tensor is made of, what it took, and its sha256
    raymerge-units.parquet     who wrote which range, when, how fast

`raymerge.json` names them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from typing import Any

from raymerge.plan.build import Plan
from raymerge.plan.graph import CopyStep, Step, TensorNode, Unit
from raymerge.plan.reading import bytes_swept
from raymerge.runtime.receipt import Receipt, TensorReceipt

TENSORS_NAME = "raymerge-tensors.parquet"
UNITS_NAME = "raymerge-units.parquet"
LEDGER_NAMES = {"tensors": TENSORS_NAME, "units": UNITS_NAME}


def ledger(
    plan: Plan, receipts: Mapping[int, Receipt], *, resumed: Collection[int]
) -> dict[str, bytes]:
    """Both tables, by file name.

    Args:
        plan: What was run.
        receipts: One of every unit.
        resumed: Units that an earlier run has written.
    """
    import pyarrow as pa

    text, number, seconds = pa.string(), pa.int64(), pa.float64()
    tensor_schema = pa.schema(
        [
            ("name", text),
            ("dtype", text),
            ("shape", pa.list_(number)),
            ("shard", text),
            ("start", number),
            ("stop", number),
            ("bytes", number),
            ("method", text),
            ("knobs", text),
            ("sources", pa.list_(text)),
            ("read_bytes", number),
            ("seconds", seconds),
            ("worker", text),
            ("unit", number),
            ("sha256", text),
            ("norms", pa.list_(seconds)),
            ("cosines", pa.list_(seconds)),
        ]
    )
    unit_schema = pa.schema(
        [
            ("unit", number),
            ("shard", text),
            ("start", number),
            ("stop", number),
            ("bytes", number),
            ("tensors", number),
            ("began", pa.timestamp("us", tz="UTC")),
            ("seconds", seconds),
            ("worker", text),
            ("resumed", pa.bool_()),
        ]
    )
    units = (_unit_row(unit, receipts[unit.number], resumed) for unit in plan.units)
    tensors = _tensor_rows(plan, receipts)
    return {
        TENSORS_NAME: _parquet(pa.Table.from_pylist(list(tensors), tensor_schema)),
        UNITS_NAME: _parquet(pa.Table.from_pylist(list(units), unit_schema)),
    }


def _parquet(table: Any) -> bytes:
    from pyarrow import parquet

    content = BytesIO()
    parquet.write_table(table, content, compression="zstd")
    return content.getvalue()


def _tensor_rows(plan: Plan, receipts: Mapping[int, Receipt]) -> Iterator[dict[str, Any]]:
    knobs: dict[int, str] = {}
    for unit in plan.units:
        receipt = receipts[unit.number]
        for node, written in zip(unit.nodes, receipt.tensors, strict=True):
            step = node.step
            if id(step) not in knobs:
                knobs[id(step)] = _knobs(step)
            yield {
                **_address(node, unit),
                "method": step.reason if isinstance(step, CopyStep) else step.method,
                "knobs": knobs[id(step)],
                "sources": [f"{plan.label(one)}:{one.name}" for one in node.inputs],
                "read_bytes": bytes_swept(node, plan.memory.budget),
                "worker": receipt.worker,
                **_measured(written),
            }


def _address(node: TensorNode, unit: Unit) -> dict[str, Any]:
    slot = node.slot
    return {
        "name": slot.name,
        "dtype": slot.dtype.value,
        "shape": list(slot.shape),
        "shard": unit.shard,
        "start": slot.start,
        "stop": slot.stop,
        "bytes": slot.nbytes,
        "unit": unit.number,
    }


def _measured(written: TensorReceipt) -> dict[str, Any]:
    return {
        "seconds": written.seconds,
        "sha256": written.sha256,
        "norms": written.norms,
        "cosines": written.cosines,
    }


def _knobs(step: Step) -> str:
    return json.dumps({} if isinstance(step, CopyStep) else dict(step.knobs), default=list)


def _unit_row(unit: Unit, receipt: Receipt, resumed: Collection[int]) -> dict[str, Any]:
    return {
        "unit": unit.number,
        "shard": unit.shard,
        "start": unit.start,
        "stop": unit.stop,
        "bytes": unit.nbytes,
        "tensors": len(unit.nodes),
        "began": int(receipt.began * 1_000_000),
        "seconds": receipt.seconds,
        "worker": receipt.worker,
        "resumed": unit.number in resumed,
    }
