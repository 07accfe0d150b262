"""Hand a run to a Ray cluster as a job: our own code travels with it, and nothing has to be installed there but the
dependencies."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..core.errors import InvalidInput, PersresError
from ..pipeline.manifest_row import without_credentials

if TYPE_CHECKING:  # either import takes a second or more
    from ray.job_submission import JobSubmissionClient

    from ..pipeline.run_spec import RunSpec

FLOORS = ("core", "pipeline", "jobs")
POLL_S = 1.0
_SECRET_NAMES = re.compile(r"(?i)(^|[&;_-])(sig|signature|token|secret|password|credential|key)=")


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What the job is asked to do: the arguments of `submit`, as the cluster sees them."""

    manifest_uri: str
    catalog_uri: str
    workers: int | None = None
    device: str = "auto"
    wait: bool = False
    prune: bool = False

    def entrypoint(self) -> str:
        """The job's command: the same `submit`, told to use the cluster it finds itself in."""
        command = ["python", "-m", "persres.jobs.cli", "submit", self.manifest_uri]
        command += ["--spec", "run.yaml", "--catalog", self.catalog_uri, "--address", "auto", "--device", self.device]
        if self.workers is not None:
            command += ["--workers", str(self.workers)]
        command += [option for option, asked in (("--wait", self.wait), ("--prune", self.prune)) if asked]
        return shlex.join(command)


def submit_to_cluster(
    address: str, run: ClusterRun, spec: RunSpec, *, follow: bool = True, show: Callable[[str], None] = print
) -> int:
    """Submit a run as a Ray job and, with `follow`, print its log until it ends.

    Args:
        address: the cluster's dashboard, such as "http://127.0.0.1:8265". A token in RAY_AUTH_TOKEN or at
            RAY_AUTH_TOKEN_PATH is used as Ray does.

    Returns:
        The exit code of `submit` on the cluster; 0 if the job is not followed.

    Raises:
        InvalidInput: there is no Ray dashboard at the address, a path is relative, which means nothing over there, or
            a URI holds a password, which everybody who sees the dashboard could read.
        PersresError: the job ended without an exit code, for example because it was stopped.
    """
    for uri in (run.manifest_uri, run.catalog_uri):
        if "://" not in uri and not uri.startswith("/"):
            raise InvalidInput(
                f"{uri!r} is a relative path, which the cluster cannot find",
                fix="give a URI such as s3://bucket/manifest.parquet, or an absolute path that every node has",
            )
        if holds_credentials(uri):
            raise InvalidInput(
                f"{without_credentials(uri)} was given with a password, key or signature inside: "
                "the dashboard of the cluster would show it",
                fix="give the URI alone; workers find credentials in their environment, a profile or the node's role",
            )
    client = _connect(address)
    with TemporaryDirectory() as folder:
        working_dir = Path(folder, "run")
        working_dir.mkdir()
        (working_dir / "run.yaml").write_text(spec.to_yaml())
        job_id = client.submit_job(
            entrypoint=run.entrypoint(),
            runtime_env={"working_dir": str(working_dir), "py_modules": [str(copy_floors(Path(folder)))]},
        )
    show(f"submitted job {job_id} to {address}")
    if not follow:
        return 0
    try:
        asyncio.run(_follow(client, job_id, show))
    except KeyboardInterrupt:
        show(f"the job goes on; follow it with: ray job logs {job_id} --follow --address {address}")
        show(f"stop it with: ray job stop {job_id} --address {address}")
        return 130
    return _exit_code(client, job_id)


def holds_credentials(uri: str) -> bool:
    """Whether a URI has a password, a key or a signature in it.

    A name alone before the @ is none on stores that put a container's name there, such as abfs://container@account.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all
        return False
    is_web = parts.scheme in ("http", "https", "ftp")
    return bool(parts.password or (is_web and parts.username) or _SECRET_NAMES.search(parts.query))


def copy_floors(folder: Path) -> Path:
    """A copy of this package as one importable folder, `<folder>/persres`.

    A folder is uploaded under the digest of its content. A wheel would be uploaded under its name, and one of the
    same name that is already there would be run in its stead, however old.
    """
    source, package = Path(__file__).resolve().parent.parent, folder / "persres"
    for floor in FLOORS:
        shutil.copytree(source / floor, package / floor, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def _connect(address: str) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise InvalidInput(
            f"the Ray cluster at {address} did not accept this user's token, or was given none",
            fix="set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or in the file at "
            "RAY_AUTH_TOKEN_PATH (by default ~/.ray/auth_token)",
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"no Ray cluster answers at {address}: {error}",
            fix="give the dashboard's address, such as http://127.0.0.1:8265 behind `ray dashboard cluster.yaml`",
        ) from error


async def _follow(client: JobSubmissionClient, job_id: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        show(text.rstrip("\n"))


def _exit_code(client: JobSubmissionClient, job_id: str) -> int:
    while not (info := client.get_job_info(job_id)).status.is_terminal():
        time.sleep(POLL_S)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:
        raise PersresError(
            f"job {job_id} ended as {info.status.value}: {info.message}",
            fix="submit again: only what is missing is done",
        )
    return info.driver_exit_code
