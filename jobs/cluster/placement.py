"""On what a run's workers run: how many, on which devices, on an embedded Ray or on a cluster."""

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


WORKERS_ON_CPU = 2
"""A worker on CPU cores computes with one thread, so that its results are those of any other machine. Nobody who has
not said a number gets more of them than this."""


@dataclass(frozen=True, slots=True)
class Placement:
    """On what the workers run.

    Attributes:
        workers: how many at once; None: the spec's number, or one for every GPU, or up to two on CPU cores. On a
            cluster that is looked at again all the time: nodes that join are used. GPUs that its autoscaler may start,
            where that is known, count as if they were there.
        device: "auto" takes GPUs where there are any, or may be.
        join_cluster: use the Ray cluster this process runs in, rather than an embedded one.
        dashboard: serve the embedded Ray's dashboard.
    """

    workers: int | None = None
    device: DeviceChoice = "auto"
    join_cluster: bool = False
    dashboard: bool = False


@dataclass(frozen=True, slots=True)
class RayConnection:
    """A Ray that this process is connected to, and what a run uses of it. `workers` may be asked at any time."""

    device: Device
    workers: Callable[[], int]


@contextmanager
def connect_ray(
    where: Placement,
    spec: RunSpec,
    *,
    metadata: Mapping[str, str] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Iterator[RayConnection]:
    """Ray for the length of a run.

    Args:
        metadata: what Ray's dashboard shows of the run.
        notify: called with where the embedded Ray's dashboard is, if it has one.
    """
    asked = where.workers or spec.workers
    if where.join_cluster:
        with joined_ray(metadata=metadata):
            # Not before: it imports Ray, which reads its environment then.
            from .nodes import max_cluster_gpus, usable_devices

            to_be_had = max_cluster_gpus()
            device = _device(where.device, max(to_be_had, usable_devices()[0]))

            def workers_now() -> int:
                gpus, cpus = usable_devices()
                return asked or _default_workers(device, max(to_be_had, gpus), cpus)

            yield RayConnection(device, workers_now)
        return
    gpus, _ = _devices_here()
    device, workers = _device(where.device, gpus), local_workers(where, spec)
    gpus_used = min(gpus, workers) if device == "cuda" else 0
    with embedded_ray(workers, gpus=gpus_used, dashboard=where.dashboard, metadata=metadata, notify=notify):
        yield RayConnection(device, lambda: workers)


def local_workers(where: Placement, spec: RunSpec) -> int:
    """How many workers a run on an embedded Ray has on this machine."""
    gpus, cpus = _devices_here()
    return where.workers or spec.workers or _default_workers(_device(where.device, gpus), gpus, cpus)


def _devices_here() -> tuple[int, int]:
    """GPUs, and CPU cores that this process may use."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return torch.cuda.device_count(), cpus


def _device(choice: DeviceChoice, gpus: int) -> Device:
    if choice == "auto":
        return "cuda" if gpus else "cpu"
    return choice


def _default_workers(device: Device, gpus: int, cpus: int) -> int:
    return max(1, gpus if device == "cuda" else min(cpus, WORKERS_ON_CPU))
