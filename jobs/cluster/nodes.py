"""The nodes of the cluster that this process is connected to, and those that its autoscaler may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from .device import Device

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"
"""Ray's cluster launcher writes the autoscaler's configuration to this file of the head node."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A type of node that an autoscaler may start: at most how many, and the GPUs and CPU cores of each."""

    max_nodes: int
    gpus: int
    cpus: int


def usable_devices() -> tuple[int, int]:
    """GPUs and CPU cores of the nodes that are alive and not draining."""
    draining = draining_nodes()
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    gpus, cpus = (int(sum(resources.get(kind, 0) for resources in found)) for kind in ("GPU", "CPU"))
    return gpus, cpus


def max_cluster_gpus() -> int:
    """The number of GPUs for workers that the cluster has once its autoscaler has started all nodes that it may.

    It is known if the autoscaler has reported it to the cluster, or if this process runs on the head node of a cluster
    that was started by Ray's launcher. Otherwise, as on Kubernetes, it is 0.
    """
    return _reported_max_gpus() or _configured_max_gpus()


def max_gpu_workers(types: Iterable[NodeType], max_nodes: int) -> int:
    """The most workers, of one GPU and one core each, that fit on `max_nodes` nodes of these types."""
    workers = 0
    for node_type in sorted(types, key=lambda node_type: min(node_type.gpus, node_type.cpus), reverse=True):
        nodes = min(node_type.max_nodes, max_nodes)
        workers, max_nodes = workers + nodes * min(node_type.gpus, node_type.cpus), max_nodes - nodes
    return workers


def _reported_max_gpus() -> int:
    """The maximum that an autoscaler has reported to the cluster, as some hosted ones do. Ray Train reads it too."""
    from ray._private.state import state

    try:
        resources = state.get_max_resources_from_cluster_config() or {}
    except AttributeError:  # a version of Ray without this function
        return 0
    gpus = resources.get("GPU", 0)
    return gpus if gpus < 1 << 31 else 0  # without a limit, the user has to give a number


def _configured_max_gpus() -> int:
    """The maximum in the launcher's file, which on any node but the head may be that of another cluster."""
    file, head = Path(LAUNCHER_FILE).expanduser(), _local_head_resources()
    if head is None or not file.is_file():
        return 0
    config = yaml.safe_load(file.read_bytes())
    max_nodes = config.get("max_workers", 0)
    types = [_node_type(node, max_nodes) for node in config.get("available_node_types", {}).values()]
    return max_gpu_workers(types, max_nodes) + int(min(head.get("GPU", 0), head.get("CPU", 0)))


def _node_type(config: Mapping[str, Any], max_nodes: int) -> NodeType:
    resources = config.get("resources", {})
    return NodeType(config.get("max_workers", max_nodes), int(resources.get("GPU", 0)), int(resources.get("CPU", 0)))


def _local_head_resources() -> Mapping[str, float] | None:
    """The resources of the head node, if this process runs on it."""
    here = ray.get_runtime_context().get_node_id()
    found = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return next((resources for resources in found if "node:__internal_head__" in resources), None)


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that are about to be removed, and must get no new work."""
    from ray._private.state import state  # there is no public function; Ray Train uses this one too

    try:
        return frozenset(state.get_draining_nodes())
    except AttributeError:  # a version of Ray without this function: the work on such a node is lost and retried
        return frozenset()


def describe_resources(device: Device) -> str:
    """The resources that a worker needs and those of the cluster, to explain why workers do not start."""
    kinds = ("GPU", "CPU") if device == "cuda" else ("CPU",)
    total, free = ray.cluster_resources(), ray.available_resources()
    needed = " and ".join(f"1 {kind}" for kind in kinds)
    existing = ", ".join(f"{total.get(kind, 0):.0f} {kind} ({free.get(kind, 0):.0f} free)" for kind in kinds)
    text = f"each needs {needed}, the cluster has {existing}"
    limit = max_cluster_gpus() if device == "cuda" else 0
    return f"{text} and may start nodes for {limit}" if limit else text
