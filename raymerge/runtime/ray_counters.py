"""Counters of a run in Ray's metrics, which Prometheus collects from the driver's node.

The driver counts what workers report with each unit: nothing more travels, and a worker that is
killed takes no figure with it. Ray puts `ray_` before the names, and `_total` behind them.
"""

from __future__ import annotations

from functools import cached_property

from ray.util.metrics import Counter

from raymerge.runtime.events import Event, UnitEnded, UnitRedone, WorkerLost

NAMES = {
    "units": "Units done, those of a survey's sweeps included",
    "bytes_read": "Bytes read from sources",
    "bytes_written": "Bytes written to the destination",
    "retries": "Requests to storage that were made again",
    "redone_units": "Units that were given out again",
    "lost_workers": "Workers that are no more",
}
"""What is counted, each by node and worker."""


class RayCounters:
    """Counts events by node and worker. For a process that is part of a cluster by then."""

    def __call__(self, event: Event) -> None:
        """Count what an event tells."""
        if isinstance(event, UnitEnded):
            counts = {
                "units": 1,
                "bytes_read": event.bytes_read,
                "bytes_written": event.bytes_written,
                "retries": event.retries,
            }
        elif isinstance(event, UnitRedone):
            counts = {"redone_units": 1}
        elif isinstance(event, WorkerLost):
            counts = {"lost_workers": 1}
        else:
            return
        tags = {"node": event.node, "worker": event.worker}
        for name, count in counts.items():
            if count:
                self.counters[name].inc(count, tags)

    @cached_property
    def counters(self) -> dict[str, Counter]:
        """Ray's own, made when the first is needed: the process has joined a cluster by then."""
        return {
            name: Counter(f"raymerge_{name}", text, ("node", "worker"))
            for name, text in NAMES.items()
        }
