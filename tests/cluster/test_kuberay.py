"""The manifests in `cluster/kuberay` against KubeRay's fields and Kubernetes' schemas. Offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray

from tests.cluster.commands import CLUSTER, command_lines, documents, parse
from tests.cluster.crd import KINDS, problems, templates

KUBERNETES = "1.33"
EACH_MANIFEST = pytest.mark.parametrize(
    "path", sorted(CLUSTER.glob("kuberay/*.yaml")), ids=lambda path: path.stem
)


@EACH_MANIFEST
def test_a_manifest_has_fields_that_kuberay_and_kubernetes_know(path: Path) -> None:
    for document in documents(path):
        kind = document["kind"]
        if kind not in KINDS:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
            continue
        assert list(problems(document, KINDS[kind])) == []
        pods = list(templates(document))
        assert len(pods) == 2
        for pod in pods:
            whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod}
            kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_unknown_and_mistaken_fields_are_found() -> None:
    (document,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    document["spec"]["backofLimit"] = 3
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] = "2"
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] = {"num-cpus": 0}
    document["spec"]["submissionMode"] = "Job"
    found = "\n".join(problems(document, KINDS["RayJob"]))
    for words in ("backofLimit: no such field", "minReplicas: '2'", "num-cpus", "'Job' is none of"):
        assert words in found
    pod = next(templates(document))
    pod["spec"]["tolerations"] = [{"key": "spot", "effects": "NoSchedule"}]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "template": pod}, KUBERNETES, strict=True
        )


def cluster_specs() -> list[dict[str, Any]]:
    (cluster,) = documents(CLUSTER / "kuberay" / "raycluster.yaml")
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    return [cluster["spec"], job["spec"]["rayClusterSpec"]]


def test_clusters_of_kuberay_have_a_token_an_account_and_spot_workers() -> None:
    (account,) = documents(CLUSTER / "kuberay" / "serviceaccount.yaml")
    for spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "raymerge-token"}
        assert spec["rayVersion"] == ray.__version__
        head, worker = spec["headGroupSpec"], spec["workerGroupSpecs"][0]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert "tolerations" not in head["template"]["spec"]
        taints = {each["key"] for each in worker["template"]["spec"]["tolerations"]}
        assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= taints
        for group in (head, worker):
            pod = group["template"]["spec"]
            assert pod["serviceAccountName"] == account["metadata"]["name"]
            assert pod["securityContext"]["runAsNonRoot"]


def test_the_job_s_cluster_is_the_cluster_with_the_recipe() -> None:
    cluster, job = cluster_specs()
    pod = job["headGroupSpec"]["template"]["spec"]
    assert pod.pop("volumes")[0]["configMap"] == {"name": "raymerge-recipe"}
    assert pod["containers"][0].pop("volumeMounts")[0]["mountPath"] == "/recipe"
    assert job == cluster


def test_the_job_starts_a_merge_and_is_tried_again() -> None:
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    (words,) = command_lines(job["spec"]["entrypoint"])
    assert words[:3] == ["raymerge", "merge", "/recipe/recipe.yaml"]
    parse(words)
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"]
