"""What is told to whoever starts nodes for a Ray cluster, if anybody does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ray import exceptions as failures
from ray._private import state as ray_state
from ray.experimental import internal_kv

from raymerge.runtime.placement import Place


def can_grow() -> bool:
    """Whether an autoscaler may bring nodes."""
    try:
        config = ray_state.state.get_cluster_config()
    except (AttributeError, failures.RayError):
        config = None
    if config is not None and config.node_group_configs:
        return True
    # Its older version keeps a report. One that starts nothing has a type of its own for each node.
    report = json.loads(internal_kv._internal_kv_get("__autoscaling_status") or "{}")  # noqa: SLF001
    types = report.get("autoscaler_report", {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())


def want(places: Sequence[Place], labels: Mapping[str, str]) -> None:
    """Tell the autoscaler what is wanted, in place of what it was told before; nothing, to forget.

    It remembers until it is told to forget.
    """
    from ray.autoscaler.sdk import request_resources

    wanted = [spot.bundle_of_resources for spot in places]
    selectors = [dict(labels) for _ in places] if labels else None
    request_resources(bundles=wanted, bundle_label_selectors=selectors)
