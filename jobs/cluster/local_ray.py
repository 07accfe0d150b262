"""Where the workers run: a Ray of our own on this machine, or the cluster this process is part of.

Whoever reaches a Ray that asks for no token can run any code. So ours asks for one, which is made up for each process
and handed on in the environment: other users of the machine cannot read it.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 256 << 20

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints a paragraph on stdout for every worker that dies. The driver handles and reports each of them.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1, so nothing outside can connect
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@contextmanager
def embedded_ray(
    cpus: int,
    *,
    gpus: int = 0,
    dashboard: bool = False,
    metadata: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """A Ray on this machine's loopback interface, for as long as the block lasts.

    It asks for a token, unless RAY_AUTH_MODE says otherwise. A process that has connected to a Ray already, such as a
    notebook, keeps that one.

    Args:
        dashboard: also serve Ray's dashboard on http://127.0.0.1:8265; costs a second or two and some memory.
        metadata: what the dashboard shows of this process.
        say: told where the dashboard is, and where the token that it asks for.
    """
    _set_environment(_QUIET | _LOOPBACK | _authentication())
    import ray

    if ray.is_initialized():
        yield
        return
    context = ray.init(
        address="local",  # whatever RAY_ADDRESS or a cluster left behind on this machine says
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        job_config=_job_config(metadata),
    )
    try:
        with _told(context.dashboard_url if dashboard else None, say):
            yield
    finally:
        ray.shutdown()


@contextmanager
def joined_ray(address: str = "auto", *, metadata: Mapping[str, str] | None = None) -> Iterator[None]:
    """The running cluster at `address`, left again when the block ends.

    Args:
        metadata: what the dashboard shows of this process; a submitted job has brought its own.
    """
    _set_environment(_QUIET)
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_job_config(metadata))
    try:
        yield
    finally:
        ray.shutdown()


def _set_environment(values: dict[str, str]) -> None:
    """Ray reads these when it is imported; what the user has set stays."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _authentication() -> dict[str, str]:
    """What makes our Ray ask for a token; nothing where the user has said what it is to ask for."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if "ray" in sys.modules:  # it has read the mode, and only looks again, with a warning, if there still is none
        return token
    return {"RAY_AUTH_MODE": "token", **token}


@contextmanager
def _told(dashboard: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Says how a browser gets into the dashboard, if there is one; the token lies in a file while the block lasts."""
    is_asked_for = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    token = os.environ.get("RAY_AUTH_TOKEN") if is_asked_for else None
    if dashboard is None or token is None:
        if dashboard is not None:
            say(f"Ray's dashboard: http://{dashboard}" + (", which asks for your token" if is_asked_for else ""))
        yield
        return
    handle, name = tempfile.mkstemp(prefix="persres-dashboard-token-")  # for this user's eyes only
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
        say(f"Ray's dashboard: http://{dashboard}, which asks for the token that is in {name}")
        yield
    finally:
        Path(name).unlink(missing_ok=True)


def _job_config(metadata: Mapping[str, str] | None) -> Any:
    """None, which `ray.init` takes though it does not say so, where there is nothing to add."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.job_config import JobConfig

    if not metadata or RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    return JobConfig(metadata=dict(metadata))
