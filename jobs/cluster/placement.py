"""Where the workers of a run are placed: how many, on which devices, on an embedded Ray or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .device import Device, DeviceChoice
from .local_ray import embedded_ray, joined_ray

if TYPE_CHECKING:
    from ...pipeline.spec.run_spec import RunSpec

MAX_DEFAULT_CPU_WORKERS = 2
"""A worker on the CPU computes with one thread, so that its results do not depend on the machine. Unless the user gives
a number, there are no more of them than this."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The user's choice of where the workers run.

    Attributes:
        workers: the number of workers at once. None: the run spec's number, else one per GPU, else up to two on CPU
            cores. On a cluster this number follows the nodes that join and leave; GPUs that the autoscaler may start
            count, if known.
        device: "auto": GPUs if there are any, or may be.
        join_cluster: use the Ray cluster that this process runs in, rather than an embedded Ray.
        dashboard: serve the embedded Ray's dashboard.
    """

    workers: int | None = None
    device: DeviceChoice = "auto"
    join_cluster: bool = False
    dashboard: bool = False


@dataclass(frozen=True, slots=True)
class RayConnection:
    """The Ray that this process is connected to. `workers` returns how many workers a run may have at present."""

    device: Device
    workers: Callable[[], int]


@contextmanager
def connect_ray(
    placement: Placement,
    spec: RunSpec,
    *,
    metadata: Mapping[str, str] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Iterator[RayConnection]:
    """Connect this process to Ray until the block ends.

    Args:
        metadata: shown by Ray's dashboard.
        notify: called with a message that says where the embedded Ray's dashboard is, if it has one.
    """
    requested = placement.workers or spec.workers
    if placement.join_cluster:
        with joined_ray(metadata=metadata):
            # Here, because it imports Ray, which reads the environment that `joined_ray` sets.
            from .nodes import max_cluster_gpus, usable_devices

            max_gpus = max_cluster_gpus()
            device = _device(placement.device, max(max_gpus, usable_devices()[0]))

            def workers_now() -> int:
                gpus, cpus = usable_devices()
                return requested or _default_workers(device, max(max_gpus, gpus), cpus)

            yield RayConnection(device, workers_now)
        return
    gpus, _ = _local_devices()
    device, workers = _device(placement.device, gpus), local_workers(placement, spec)
    gpus_used = min(gpus, workers) if device == "cuda" else 0
    with embedded_ray(workers, gpus=gpus_used, dashboard=placement.dashboard, metadata=metadata, notify=notify):
        yield RayConnection(device, lambda: workers)


def local_workers(placement: Placement, spec: RunSpec) -> int:
    """The number of workers of a run on this machine, on an embedded Ray."""
    gpus, cpus = _local_devices()
    return placement.workers or spec.workers or _default_workers(_device(placement.device, gpus), gpus, cpus)


def _local_devices() -> tuple[int, int]:
    """GPUs, and CPU cores that this process may use."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return torch.cuda.device_count(), cpus


def _device(choice: DeviceChoice, gpus: int) -> Device:
    if choice == "auto":
        return "cuda" if gpus else "cpu"
    return choice


def _default_workers(device: Device, gpus: int, cpus: int) -> int:
    return max(1, gpus if device == "cuda" else min(cpus, MAX_DEFAULT_CPU_WORKERS))
