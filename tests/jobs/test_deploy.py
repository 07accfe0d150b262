"""The files in jobs/deploy, as far as they can be checked without Kubernetes and Grafana."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from persres.jobs.observe.metrics import ALL_SERIES
from persres.jobs.schedule.kuberay import DEPLOY, cluster_spec
from persres.pipeline.spec.run_spec import RunSpec

from ..support.kuberay_examples import IMAGE, example_manifests

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted(path.name for path in DEPLOY.glob("*.yaml"))
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)

# The fields of KubeRay 1.6 that we use, and those that it requires: its types in ray-operator/apis/ray/v1.
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
JOB_FIELDS = {
    "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
}  # fmt: skip
CRON_JOB_FIELDS = {"schedule", "jobTemplate"}
HEAD_FIELDS = {"serviceType", "rayStartParams", "template"}
WORKER_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
API_VERSIONS = {
    "RayCluster": "ray.io/v1", "RayJob": "ray.io/v1", "RayCronJob": "ray.io/v1", "ConfigMap": "v1",
    "NetworkPolicy": "networking.k8s.io/v1", "PodMonitor": "monitoring.coreos.com/v1",
}  # fmt: skip


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "raycluster.yaml", cluster_spec()
    yield "rayjob.yaml", documents("rayjob.yaml")[1]["spec"]["rayClusterSpec"]
    yield "raycronjob.yaml", documents("raycronjob.yaml")[1]["spec"]["jobTemplate"]["rayClusterSpec"]


@pytest.fixture(params=clusters(), ids=lambda param: param[0])
def cluster(request) -> dict[str, Any]:
    return request.param[1]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", MANIFESTS)
def test_documents_have_kind_version_and_a_valid_name(name):
    for document in documents(name):
        assert API_VERSIONS[document["kind"]] == document["apiVersion"]
        assert DNS_LABEL.fullmatch(document["metadata"]["name"])
        assert len(document["metadata"]["name"]) <= 47  # KubeRay adds to it to name clusters and services


def test_kuberay_fields_exist(cluster):
    assert set(cluster) == CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) == HEAD_FIELDS
    assert all(set(group) == WORKER_FIELDS for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    job, cron_job = documents("rayjob.yaml")[1]["spec"], documents("raycronjob.yaml")[1]["spec"]
    assert set(job) == set(cron_job["jobTemplate"]) == JOB_FIELDS
    assert set(cron_job) == CRON_JOB_FIELDS


def test_cluster_requires_a_token_and_no_service_is_public(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_head_has_no_gpu_and_workers_scale(cluster):
    head, (worker,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head)
    assert cluster["enableInTreeAutoscaling"] is True
    assert (worker["minReplicas"], worker["replicas"]) == (0, 0)
    assert worker["maxReplicas"] > 0
    for amounts in worker["template"]["spec"]["containers"][0]["resources"].values():
        assert amounts["nvidia.com/gpu"] == "1"
    assert "SPOT" in worker["template"]["spec"]["nodeSelector"].values()
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods(cluster)} == {"Never"}  # which version 2 requires


def test_versions_equal_the_constraints(cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert IMAGE.endswith(f":{project['version']}")
    assert cluster["rayVersion"] == PINS["ray"]
    assert {pod["containers"][0]["image"] for pod in pods(cluster)} == {IMAGE}
    (base,) = re.findall(r"^FROM rayproject/ray:(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert base.split("-")[0] == PINS["ray"]


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_images_have_fixed_versions(path):
    for image in re.findall(r"(?:\bimage:|^FROM)\s+(\S+)", path.read_text(), re.MULTILINE):
        assert re.search(r":[\w.-]+$", image)
        assert not image.endswith(":latest")


def test_pods_names_amounts_and_references_are_consistent(cluster):
    for pod in pods(cluster):
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert all(DNS_LABEL.fullmatch(name) for name in (container["name"], *volumes))
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert all(len(port["name"]) <= 15 and DNS_LABEL.fullmatch(port["name"]) for port in container["ports"])
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert all(QUANTITY.fullmatch(amount) for amount in resources["limits"].values())


def test_base_model_cache_is_on_the_nodes_disk(cluster):
    for pod in pods(cluster):
        (container,) = pod["containers"]
        environment = {one["name"]: one for one in container["env"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        kept = [environment[name]["value"] for name in ("HF_HOME", "PERSRES_CACHE")]
        (home,) = [mounts[path] for path in mounts if all(folder.startswith(f"{path}/") for folder in kept)]
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == home]
        assert set(volume) == {"name", "emptyDir"}
        assert "medium" not in volume["emptyDir"]  # that would be memory


def test_secrets_are_references_and_never_written(cluster):
    for pod in pods(cluster):
        for variable in pod["containers"][0]["env"]:
            if re.search("KEY|TOKEN|SECRET|PASSWORD", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
                assert variable["valueFrom"]["secretKeyRef"]["optional"] is True


def test_containers_run_without_privileges(cluster):
    for pod in pods(cluster):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_network_policy_and_pod_monitor_select_the_pods_and_their_port(cluster):
    (policy,), (monitor,) = documents("network-policy.yaml"), documents("pod-monitor.yaml")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for selector in (policy["spec"]["podSelector"], monitor["spec"]["selector"]):
        for group in groups:
            assert selector["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    endpoint = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", ())}
    for pod in pods(cluster):
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert ports[endpoint] in open_ports


def test_deployed_examples_equal_what_the_code_writes():
    """All but the run spec in them, which gains settings without anything about a cluster changing."""
    for name, text in example_manifests().items():
        (map_there, *there), (map_now, *now) = documents(name), yaml.safe_load_all(text)
        assert there == now, "run tests/support/kuberay_examples.py"
        assert map_there["metadata"] == map_now["metadata"]
        RunSpec.from_yaml(map_there["data"]["run.yaml"])


# -- the dashboard ---------------------------------------------------------------------------------------------------

DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
LABELS = {name: {"run", *series.labels} for series in ALL_SERIES for name in series.exported}


def test_dashboard_queries_name_existing_series_and_show_all():
    named = {name for expression in EXPRESSIONS for name in re.findall(r"\bray_\w+", expression)}
    assert named <= set(LABELS)
    assert all(named & set(series.exported) for series in ALL_SERIES)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dashboard_queries_sum_over_processes_and_use_existing_labels(expression):
    assert re.search(r"\b(sum|max) by \(", expression)
    for name, matchers in re.findall(r"(ray_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r'(\w+)=~?"', matchers)) <= LABELS[name]
        assert 'run=~"$run"' in matchers
    kept = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert kept <= {"le"}.union(*(LABELS[name] for name in re.findall(r"ray_\w+", expression)))
    assert expression.count("(") == expression.count(")")


def test_dashboard_takes_rates_of_counters_only():
    for expression in EXPRESSIONS:
        for name in re.findall(r"(?:rate|increase)\((ray_\w+)", expression):
            assert name.endswith(("_total", "_bucket"))


def test_dashboard_panels_have_unique_ids_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
