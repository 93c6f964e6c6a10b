"""A driver that merges on a Ray cluster: python -m tests.merging ADDRESS NODES.

First it prints the addresses of the cluster's nodes by their hosts' names, once so many are there.
Then it reads what to merge, a line of JSON each, and prints what `raymerge.merge` returns.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray

import raymerge
from raymerge.runtime import crew, ray_cluster

START_S = 200


def addresses(number: int) -> dict[str, str]:
    """Those of the nodes, once there are as many."""
    give_up_s = time.monotonic() + START_S
    while len(alive := [node for node in ray.nodes() if node["Alive"]]) < number:
        if time.monotonic() > give_up_s:
            raise TimeoutError(alive)
        time.sleep(0.1)
    return {node["NodeManagerHostname"]: node["NodeManagerAddress"] for node in alive}


def main(address: str, number: int) -> None:
    """Merge until there is nothing more to read."""
    # Else a merge on a busy machine begins without a node that takes long to start its worker.
    crew.ANNOUNCE_S = START_S
    # A connection that is there already is used by each merge, and left open.
    ray_cluster.connect(address, workers=None)
    _say(addresses(number))
    for line in sys.stdin:
        told = json.loads(line)
        result = raymerge.merge(
            told["recipe"], told["out"], engine="ray", address=address, **told["options"]
        )
        _say(result.as_json())


def _say(words: Any) -> None:
    sys.stdout.write(f"{json.dumps(words)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
