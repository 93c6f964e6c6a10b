"""How the units in progress on a node share its lines and its devices. Pure.

Of what is too little for all, those that use it are slowed by the same factor of what they would
do alone; the others share the rest likewise. Of a line on its own that gives each the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.runtime.simulation.demands import Demand
from raymerge.runtime.simulation.fleet import GB, Fleet

READ, WRITE = -1, -2
"""The node's lines among its devices, which are 0 and up."""


def speeds(
    running: Sequence[tuple[int, Demand]], fleet: Fleet, cores: Mapping[int, int]
) -> list[float]:
    """How much of its demand each unit gets in a second.

    Args:
        running: Device and demand of every unit in progress on one node.
        fleet: What the node is like.
        cores: What merges at once on each device.
    """
    alone = [1 / _alone_s(demand, fleet) for _, demand in running]
    uses = [
        {what: amount * speed for what, amount in _uses(device, demand)}
        for (device, demand), speed in zip(running, alone, strict=True)
    ]
    lines = {READ: fleet.read_gbps * GB, WRITE: fleet.write_gbps * GB}
    room = {what: lines.get(what) or float(cores[what]) for use in uses for what in use}
    found = [0.0] * len(running)
    left = set(range(len(running)))
    while left:
        asked = dict.fromkeys(room, 0.0)
        for one in left:
            for what, amount in uses[one].items():
                asked[what] += amount
        shares = {what: room[what] / amount for what, amount in asked.items() if amount}
        full = min(shares, key=lambda what: shares[what])
        share = min(1.0, shares[full])
        settled = left if share == 1 else {one for one in left if full in uses[one]}
        for one in settled:
            found[one] = alone[one] * share
            for what, amount in uses[one].items():
                room[what] = max(0.0, room[what] - amount * share)
        left = left - settled
    return found


def _uses(device: int, demand: Demand) -> Iterator[tuple[int, float]]:
    amounts = {READ: demand.read_bytes, device: demand.merge_s, WRITE: demand.write_bytes}
    return ((what, amount) for what, amount in amounts.items() if amount)


def _alone_s(demand: Demand, fleet: Fleet) -> float:
    """How long a demand takes where there is nothing else."""
    return max(
        demand.read_bytes / fleet.unit_read_bytes_s,
        demand.merge_s,
        demand.write_bytes / fleet.unit_write_bytes_s,
    )
