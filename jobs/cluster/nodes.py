"""What Ray says about the machines of the cluster this process is connected to, and about those it could have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from .device import Device

LAUNCHER_FILE = "~/ray_bootstrap_config.yaml"
"""Where Ray's cluster launcher puts the autoscaler's configuration on the head node."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of machine that an autoscaler may start: how many at most, and what each has."""

    most: int
    gpus: int
    cpus: int


def usable_devices() -> tuple[int, int]:
    """GPUs and CPU cores of the machines that are there and stay."""
    going = draining_nodes()
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]
    gpus, cpus = (int(sum(resources.get(kind, 0) for resources in found)) for kind in ("GPU", "CPU"))
    return gpus, cpus


def max_cluster_gpus() -> int:
    """How many GPU workers the cluster could have at once, with all machines that its autoscaler may start.

    That is known where Ray's own autoscaler has told the cluster, or where this process runs on the head node of a
    cluster that Ray's launcher started; elsewhere, as on Kubernetes, it is 0.
    """
    return _told_by_cluster() or _written_by_launcher()


def max_gpu_workers(types: Iterable[NodeType], most_nodes: int) -> int:
    """How many workers with a GPU and a core each there can be on so many machines, of types as large as possible."""
    workers = 0
    for kind in sorted(types, key=lambda kind: min(kind.gpus, kind.cpus), reverse=True):
        nodes = min(kind.most, most_nodes)
        workers, most_nodes = workers + nodes * min(kind.gpus, kind.cpus), most_nodes - nodes
    return workers


def _told_by_cluster() -> int:
    """From what an autoscaler has reported to the cluster, as some hosted ones do. Ray Train looks there too."""
    from ray._private.state import state

    try:
        most = state.get_max_resources_from_cluster_config() or {}
    except AttributeError:  # another Ray than those we know
        return 0
    gpus = most.get("GPU", 0)
    return gpus if gpus < 1 << 31 else 0  # no limit: then somebody has to say a number


def _written_by_launcher() -> int:
    """From the launcher's file. Elsewhere than on the head it may be another cluster's."""
    file, head = Path(LAUNCHER_FILE).expanduser(), _head_here()
    if head is None or not file.is_file():
        return 0
    found = yaml.safe_load(file.read_bytes())
    most_nodes = found.get("max_workers", 0)
    types = [_node_type(described, most_nodes) for described in found.get("available_node_types", {}).values()]
    return max_gpu_workers(types, most_nodes) + int(min(head.get("GPU", 0), head.get("CPU", 0)))


def _node_type(described: Mapping[str, Any], most_nodes: int) -> NodeType:
    has = described.get("resources", {})
    return NodeType(described.get("max_workers", most_nodes), int(has.get("GPU", 0)), int(has.get("CPU", 0)))


def _head_here() -> Mapping[str, float] | None:
    """What the head node has; None if this process runs elsewhere."""
    here = ray.get_runtime_context().get_node_id()
    found = (node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return next((resources for resources in found if "node:__internal_head__" in resources), None)


def draining_nodes() -> frozenset[str]:
    """The ids of machines that have been given notice: they go, and are to get no new work."""
    from ray._private.state import state  # there is no public name; Ray Train asks this one too

    try:
        return frozenset(state.get_draining_nodes())
    except AttributeError:  # another Ray than those we know: work on such a machine is then lost, and done again
        return frozenset()


def describe_resources(device: Device) -> str:
    """What one worker asks for, and what the cluster has of it, for somebody who wonders why nothing happens."""
    kinds = ("GPU", "CPU") if device == "cuda" else ("CPU",)
    there, free = ray.cluster_resources(), ray.available_resources()
    asks = " and ".join(f"1 {kind}" for kind in kinds)
    has = ", ".join(f"{there.get(kind, 0):.0f} {kind} ({free.get(kind, 0):.0f} free)" for kind in kinds)
    said = f"each asks for {asks}, the cluster has {has}"
    most = max_cluster_gpus() if device == "cuda" else 0
    return f"{said} and may start machines for {most}" if most else said
