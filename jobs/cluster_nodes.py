"""What Ray says about the machines of the cluster this process is connected to."""

from __future__ import annotations

import ray

from .where_to_run import Device


def usable_devices() -> tuple[int, int]:
    """GPUs and CPU cores of the machines that are there and stay."""
    going = draining_nodes()
    found = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]
    gpus, cpus = (int(sum(resources.get(kind, 0) for resources in found)) for kind in ("GPU", "CPU"))
    return gpus, cpus


def draining_nodes() -> frozenset[str]:
    """The ids of machines that have been given notice: they go, and are to get no new work."""
    from ray._private.state import state  # there is no public name; Ray Train asks this one too

    try:
        return frozenset(state.get_draining_nodes())
    except AttributeError:  # another Ray than those we know: work on such a machine is then lost, and done again
        return frozenset()


def resources_in_words(device: Device) -> str:
    """What one worker asks for, and what the cluster has of it, for somebody who wonders why nothing happens."""
    kinds = ("GPU", "CPU") if device == "cuda" else ("CPU",)
    there, free = ray.cluster_resources(), ray.available_resources()
    asks = " and ".join(f"1 {kind}" for kind in kinds)
    has = ", ".join(f"{there.get(kind, 0):.0f} {kind} ({free.get(kind, 0):.0f} free)" for kind in kinds)
    return f"each asks for {asks}, the cluster has {has}"
