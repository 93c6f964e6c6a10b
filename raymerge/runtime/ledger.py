"""The run's ledger: two Parquet tables beside the output, which `raymerge.json` names.

raymerge-tensors.parquet     a row per tensor, in the order of their bytes
digest                       of the plan: ledgers of many merges can be read as one table
name, dtype, shape           of the output; dtypes are safetensors' names
shard, start, stop, bytes    where it lies: a half-open range of that file
method, knobs                of a copy why nothing was computed, and {}; knobs are JSON
sources                      `label:tensor` of each input in recipe order, the base first where
                             the merge is relative to it; a stage stands by its name
read_bytes                   what the plan reads for it, sweeps that are made again counted
seconds, worker              from first read to last write, on one thread; `host:process`
unit                         number of the unit that it was written in
sha256                       of its bytes
norms, cosines               with --stats, of what is merged: the inputs, or the task vectors
                             where the merge is relative to a base; cosines of every pair, of
                             the first with each that follows, then of the second, null where a
                             vector is zero. Null of a copy, and of what an earlier run wrote
                             without --stats

raymerge-units.parquet       a row per unit, by number
digest, unit                 of the plan; its number
shard, start, stop, bytes    the range of the file that it stands for
tensors                      how many
began, seconds, worker       when it was begun (UTC), what it took, who wrote it
resumed                      whether an earlier run has written it
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
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
    units = (_unit_row(unit, receipts[unit.number], resumed) for unit in plan.units)
    rows = {TENSORS_NAME: _tensor_rows(plan, receipts), UNITS_NAME: units}
    return {
        name: _parquet(({"digest": plan.digest, **row} for row in rows[name]), schema)
        for name, schema in _schemas().items()
    }


def _schemas() -> dict[str, Any]:
    import pyarrow as pa

    text, number, figure = pa.string(), pa.int64(), pa.float64()
    tensors = {
        "digest": text,
        "name": text,
        "dtype": text,
        "shape": pa.list_(number),
        "shard": text,
        "start": number,
        "stop": number,
        "bytes": number,
        "method": text,
        "knobs": text,
        "sources": pa.list_(text),
        "read_bytes": number,
        "seconds": figure,
        "worker": text,
        "unit": number,
        "sha256": text,
        "norms": pa.list_(figure),
        "cosines": pa.list_(figure),
    }
    units = {
        "digest": text,
        "unit": number,
        "shard": text,
        "start": number,
        "stop": number,
        "bytes": number,
        "tensors": number,
        "began": pa.timestamp("us", tz="UTC"),
        "seconds": figure,
        "worker": text,
        "resumed": pa.bool_(),
    }
    return {TENSORS_NAME: pa.schema(tensors), UNITS_NAME: pa.schema(units)}


def _parquet(rows: Iterable[dict[str, Any]], schema: Any) -> bytes:
    from pyarrow import json as arrow_json
    from pyarrow import parquet

    # As lines of JSON: pyarrow loads pandas, if there is one, to look at Python's own lists.
    lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    table = arrow_json.read_json(
        BytesIO(lines),
        arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )
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
        "began": datetime.fromtimestamp(receipt.began, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "seconds": receipt.seconds,
        "worker": receipt.worker,
        "resumed": unit.number in resumed,
    }
