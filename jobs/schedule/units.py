"""Scheduled refreshes on one machine: `submit` as a line for cron or as units for systemd.

The output holds no secrets: both formats read credentials from a file of the user. Overlapping refreshes are harmless:
the catalog's lease lets one run write, and the other exits with `ExitCode.CATALOG_HELD`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...core.errors import InvalidInput
from ...core.timing import SERVICE_STOP_MARGIN_S
from ...pipeline.storage.uri import has_credentials, without_credentials
from ..cluster.device import DeviceChoice
from .cron import CronSchedule

ENVIRONMENT = ".config/persres/environment"
"""Below the home folder: lines NAME=value, such as AWS_PROFILE=catalogs, readable by the user only."""

MAX_CRON_COMMAND_LENGTH = 998
MAX_NAME_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Refresh:
    """A scheduled `submit`: its times and its options.

    Attributes:
        name: lower-case letters, digits and dashes, which every scheduler accepts.

    Raises:
        InvalidInput: the name is not accepted by every scheduler, or a URI holds credentials or control characters.
    """

    name: str
    cron: CronSchedule
    manifest_uri: str
    catalog_uri: str
    workers: int | None = None
    address: str | None = None
    device: DeviceChoice = "auto"
    prune: bool = False

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_LENGTH or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name):
            fix = f"give --name up to {MAX_NAME_LENGTH} lower-case letters, digits and dashes, the first a letter"
            raise InvalidInput(f"{self.name!r} is not a name that every scheduler accepts", fix=fix)
        for what, uri in (("manifest", self.manifest_uri), ("catalog", self.catalog_uri), ("address", self.address)):
            if uri is None:
                continue
            if has_credentials(uri):
                reason = f"{what} {without_credentials(uri)} was given with a password, key or signature in it"
                raise InvalidInput(reason, fix="give the URI alone; credentials come from the environment at each run")
            if not uri.isprintable():
                raise InvalidInput(f"{what} {uri!r} holds a line break or control character", fix="rename it")

    def command(self, program: Sequence[str], spec: str) -> list[str]:
        """The command and its arguments.

        Args:
            program: the command line of persres-batch, without a subcommand.
            spec: the path of the run spec.
        """
        arguments = [*program, "submit", self.manifest_uri, "--spec", spec, "--catalog", self.catalog_uri]
        if self.address is not None:
            arguments += ["--address", self.address]
        if self.device != "auto":
            arguments += ["--device", self.device]
        if self.workers is not None:
            arguments += ["--workers", str(self.workers)]
        return [*arguments, *(["--prune"] if self.prune else [])]


def default_name(catalog_uri: str) -> str:
    """The default name of a refresh, after its catalog: "persres-mugs" for "s3://bucket/Mugs"."""
    last = urlsplit(catalog_uri).path.rstrip("/").rpartition("/")[2] or urlsplit(catalog_uri).netloc
    suffix = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    return f"persres-{suffix}"[:MAX_NAME_LENGTH].rstrip("-")


def crontab_line(refresh: Refresh, program: Sequence[str], spec: str) -> str:
    """A line for `crontab -e`, below comments that explain it.

    Raises:
        InvalidInput: the line is longer than cron reads.
    """
    load_environment = f'set -a; [ ! -r "$HOME/{ENVIRONMENT}" ] || . "$HOME/{ENVIRONMENT}"; set +a'
    command = f"{load_environment}; {shlex.join(refresh.command(program, spec))} 2>&1 | logger -t {refresh.name}"
    command = command.replace("%", r"\%")  # an unescaped one ends the command
    if len(command) > MAX_CRON_COMMAND_LENGTH:
        reason = f"the command has {len(command)} characters, and cron reads {MAX_CRON_COMMAND_LENGTH}"
        raise InvalidInput(reason, fix="use shorter paths, or --as systemd")
    return (
        f"# persres-batch: {refresh.catalog_uri} brought up to date with {refresh.manifest_uri}\n"
        f"# Times are this machine's. Credentials, if any, are read from ~/{ENVIRONMENT}: lines NAME=value,\n"
        f"# with `chmod 600`. The output goes to the system log: journalctl -t {refresh.name}\n"
        f"{refresh.cron.expression} {command}\n"
    )


def systemd_units(refresh: Refresh, program: Sequence[str], spec: str, *, grace_seconds: float) -> dict[str, str]:
    """A service and a timer for the user's systemd, by file suffix: ".service" and ".timer".

    Args:
        grace_seconds: how long a run that is stopped may take to commit the shards in flight.
    """
    command = " ".join(map(_systemd_argument, refresh.command(program, spec)))
    description = f"persres-batch: {refresh.catalog_uri} up to date".replace("%", "%%")
    service = f"""\
[Unit]
Description={description}

[Service]
Type=oneshot
# Credentials, if any: lines NAME=value, with `chmod 600`.
EnvironmentFile=-%h/{ENVIRONMENT}
ExecStart={command}
# A run that is stopped commits the shards in flight. Only the run itself gets the signal: it stops its workers.
KillMode=mixed
TimeoutStopSec={round(grace_seconds) + SERVICE_STOP_MARGIN_S}
"""
    times = "\n".join(f"OnCalendar={when}" for when in refresh.cron.on_calendar())
    timer = f"""\
[Unit]
Description={description} ({refresh.cron.expression})

[Timer]
{times}
# Catch up on a refresh that was due while the machine was off.
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {".service": service, ".timer": timer}


def _systemd_argument(text: str) -> str:
    """Quote an argument of ExecStart: systemd has its own quotes, variables and specifiers."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w@%+=:,./$-]+", text) else f'"{text}"'
