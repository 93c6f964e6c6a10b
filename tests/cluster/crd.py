"""The fields of KubeRay 1.7's `ray.io/v1`, as its API reference lists them, for what we use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Fields = Mapping[str, Any]
"""Of an object: a type, a nested object, or [an object] for a list of them."""
TEMPLATE = "PodTemplateSpec"
"""A type of Kubernetes itself, which has schemas."""
STRINGS = "map of strings"

AUTOSCALER: Fields = {
    "version": {"v1", "v2"},
    "idleTimeoutSeconds": int,
    "upscalingMode": {"Default", "Aggressive", "Conservative"},
    "image": str,
    "imagePullPolicy": str,
    "resources": dict,
    "securityContext": dict,
    "env": list,
    "envFrom": list,
    "volumeMounts": list,
    "command": list,
    "args": list,
}
HEAD: Fields = {
    "template": TEMPLATE,
    "headService": dict,
    "enableIngress": bool,
    "ingressOptions": dict,
    "resources": STRINGS,
    "labels": STRINGS,
    "rayStartParams": STRINGS,
    "serviceType": str,
}
WORKER: Fields = {
    "suspend": bool,
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
    "priority": int,
    "resources": STRINGS,
    "labels": STRINGS,
    "rayStartParams": STRINGS,
    "template": TEMPLATE,
    "scaleStrategy": {"workersToDelete": list},
    "numOfHosts": int,
}
CLUSTER_SPEC: Fields = {
    "upgradeStrategy": {"type": {"Recreate", "None"}},
    "authOptions": {"enableK8sTokenAuth": bool, "secretName": str, "mode": {"disabled", "token"}},
    "suspend": bool,
    "managedBy": str,
    "autoscalerOptions": AUTOSCALER,
    "headServiceAnnotations": STRINGS,
    "enableInTreeAutoscaling": bool,
    "gcsFaultToleranceOptions": dict,
    "historyServerOptions": dict,
    "networkPolicy": dict,
    "tlsOptions": {"enabled": bool},
    "headGroupSpec": HEAD,
    "rayVersion": str,
    "workerGroupSpecs": [WORKER],
}
JOB_SPEC: Fields = {
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "rayClusterSpec": CLUSTER_SPEC,
    "submitterPodTemplate": TEMPLATE,
    "metadata": STRINGS,
    "clusterSelector": STRINGS,
    "submitterConfig": {"backoffLimit": int},
    "managedBy": str,
    "deletionStrategy": dict,
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "jobId": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "entrypointResources": str,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "ttlSecondsAfterFinished": int,
    "preRunningDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "suspend": bool,
}
KINDS: Mapping[str, Fields] = {
    kind: {"apiVersion": {"ray.io/v1"}, "kind": {kind}, "metadata": dict, "spec": spec}
    for kind, spec in {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}.items()
}


def problems(value: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """What is not a field, or not of its type; templates of pods are left to Kubernetes."""
    if isinstance(wanted, Mapping) and isinstance(value, dict):
        for key, nested in value.items():
            if key in wanted:
                yield from problems(nested, wanted[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}: no such field"
    elif isinstance(wanted, list) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from problems(item, wanted[0], f"{path}[{index}]")
    elif not _is_a(value, wanted):
        yield f"{path}: {value!r} is none of {wanted}"


def _is_a(value: Any, wanted: Any) -> bool:
    if wanted == STRINGS:
        return all(isinstance(text, str) for pair in value.items() for text in pair)
    if isinstance(wanted, set):
        return value in wanted
    kind = dict if wanted == TEMPLATE else wanted
    # A bool is an int to Python, and not to Kubernetes.
    return (
        isinstance(kind, type)
        and isinstance(value, kind)
        and isinstance(value, bool) <= (kind is bool)
    )


def templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod's template within a manifest."""
    if isinstance(value, dict):
        for key, nested in value.items():
            if key in {"template", "submitterPodTemplate"}:
                yield nested
            else:
                yield from templates(nested)
    elif isinstance(value, list):
        for item in value:
            yield from templates(item)
