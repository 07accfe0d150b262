"""Where the workers run: a Ray of our own on this machine, or the cluster this process is part of."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

OBJECT_STORE_BYTES = 256 << 20

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints a paragraph on stdout for every worker that dies. The driver handles and reports each of them.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1, so nothing outside can connect
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@contextmanager
def embedded_ray(cpus: int, *, gpus: int = 0, dashboard: bool = False) -> Iterator[None]:
    """A Ray on this machine's loopback interface, for as long as the block lasts.

    A process that has connected to a Ray already, such as a notebook, keeps that one.

    Args:
        dashboard: also serve Ray's dashboard on http://127.0.0.1:8265; costs a second or two and some memory.
    """
    _set_environment(_QUIET | _LOOPBACK)
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",  # whatever RAY_ADDRESS or a cluster left behind on this machine says
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def joined_ray(address: str = "auto") -> Iterator[None]:
    """The running cluster at `address`, left again when the block ends."""
    _set_environment(_QUIET)
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment(values: dict[str, str]) -> None:
    """Ray reads these when it is imported; what the user has set stays."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
