"""Connecting this process to Ray: to an embedded one on this machine, or to the cluster that it is part of.

Anyone who reaches a Ray without authentication can run any code. So the embedded Ray requires a token, which is
generated for each process and passed on in the environment, where other users of the machine cannot read it.
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

from .session_folder import session_folder

OBJECT_STORE_BYTES = 256 << 20

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints a paragraph on stdout for every worker that is lost. The driver handles and reports each of them.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all sockets are on 127.0.0.1, so that no other machine can connect
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@contextmanager
def embedded_ray(
    cpus: int,
    *,
    gpus: int = 0,
    dashboard: bool = False,
    metadata: Mapping[str, str] | None = None,
    notify: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Run Ray on this machine's loopback interface until the block ends.

    It requires a token, unless RAY_AUTH_MODE says otherwise. A process that is connected to a Ray already, such as a
    notebook, keeps that one.

    Args:
        dashboard: also serve Ray's dashboard on http://127.0.0.1:8265; costs a second or two and some memory.
        metadata: shown by the dashboard.
        notify: called with a message that says where the dashboard and its token are.
    """
    _set_environment(_QUIET | _LOOPBACK | _authentication())
    import ray

    if ray.is_initialized():
        yield
        return
    with session_folder() as folder:
        context = ray.init(
            address="local",  # regardless of RAY_ADDRESS and of other clusters on this machine
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            job_config=_job_config(metadata),
            _temp_dir=folder,
        )
        try:
            with _dashboard_access(context.dashboard_url if dashboard else None, notify):
                yield
        finally:
            ray.shutdown()


@contextmanager
def joined_ray(address: str = "auto", *, metadata: Mapping[str, str] | None = None) -> Iterator[None]:
    """Join the running cluster at `address` until the block ends.

    Args:
        metadata: shown by the dashboard, unless this process is a submitted job, which has its own.
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
    """Set variables that Ray reads when it is imported; those that the user has set are kept."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _authentication() -> dict[str, str]:
    """The variables that make Ray require a token; none if the user has set RAY_AUTH_MODE."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if "ray" in sys.modules:  # it has read the mode, and reads it again, with a warning, only if there is none
        return token
    return {"RAY_AUTH_MODE": "token", **token}


@contextmanager
def _dashboard_access(dashboard: str | None, notify: Callable[[str], None]) -> Iterator[None]:
    """Notify how a browser gets into the dashboard, if there is one; the token is in a file until the block ends."""
    needs_token = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    token = os.environ.get("RAY_AUTH_TOKEN") if needs_token else None
    if dashboard is None or token is None:
        if dashboard is not None:
            notify(f"Ray's dashboard: http://{dashboard}" + (", which requires your token" if needs_token else ""))
        yield
        return
    handle, name = tempfile.mkstemp(prefix="persres-dashboard-token-")  # readable by this user only
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
        notify(f"Ray's dashboard: http://{dashboard}, which requires the token that is in {name}")
        yield
    finally:
        Path(name).unlink(missing_ok=True)


def _job_config(metadata: Mapping[str, str] | None) -> Any:
    """The job's metadata for `ray.init`; None, which it accepts without documenting it, where there is none to add."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.job_config import JobConfig

    if not metadata or RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    return JobConfig(metadata=dict(metadata))
