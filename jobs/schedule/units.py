"""A refresh that runs by itself: `submit` as a line for cron or as units for systemd. kuberay.py has Kubernetes.

What is written holds no secret. Credentials are in a file of the user's own, which both formats read. Nights that
overlap are harmless: the catalog's lease lets one run write, and the other one ends with exit code 4.
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
"""Under the home folder: lines NAME=value, such as AWS_PROFILE=catalogs, for that user's eyes only."""

LONGEST_CRON_COMMAND = 998
LONGEST_NAME = 32


@dataclass(frozen=True, slots=True)
class Refresh:
    """One `submit`, and when.

    `name` is a word that schedulers accept: lower-case letters, digits and dashes. `prune` as `submit` has it.

    Raises:
        InvalidInput: a name or URI cannot be written down as it is, or holds a password.
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
        if len(self.name) > LONGEST_NAME or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", self.name):
            fix = f"give --name up to {LONGEST_NAME} lower-case letters, digits and dashes, the first a letter"
            raise InvalidInput(f"{self.name!r} is not a name that every scheduler accepts", fix=fix)
        for what, uri in (("manifest", self.manifest_uri), ("catalog", self.catalog_uri), ("address", self.address)):
            if uri is None:
                continue
            if has_credentials(uri):
                reason = f"{what} {without_credentials(uri)} was given with a password, key or signature inside"
                raise InvalidInput(reason, fix="give the URI alone; credentials come from the environment at each run")
            if not uri.isprintable():
                raise InvalidInput(f"{what} {uri!r} holds a line break or control character", fix="rename it")

    def command(self, program: Sequence[str], spec: str) -> list[str]:
        """The words of the command: `program` submits with the run spec at `spec`."""
        words = [*program, "submit", self.manifest_uri, "--spec", spec, "--catalog", self.catalog_uri]
        if self.address is not None:
            words += ["--address", self.address]
        if self.device != "auto":
            words += ["--device", self.device]
        if self.workers is not None:
            words += ["--workers", str(self.workers)]
        return [*words, *(["--prune"] if self.prune else [])]


def default_name(catalog_uri: str) -> str:
    """A refresh's name, after its catalog: "s3://bucket/Mugs" gives "persres-mugs"."""
    last = urlsplit(catalog_uri).path.rstrip("/").rpartition("/")[2] or urlsplit(catalog_uri).netloc
    word = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    return f"persres-{word}"[:LONGEST_NAME].rstrip("-")


def crontab_line(refresh: Refresh, program: Sequence[str], spec: str) -> str:
    """A line for `crontab -e` and what a reader has to know, as comments above it.

    Raises:
        InvalidInput: the line is longer than cron reads.
    """
    read = f'set -a; [ ! -r "$HOME/{ENVIRONMENT}" ] || . "$HOME/{ENVIRONMENT}"; set +a'
    command = f"{read}; {shlex.join(refresh.command(program, spec))} 2>&1 | logger -t {refresh.name}"
    command = command.replace("%", r"\%")  # to cron, a bare one ends the line
    if len(command) > LONGEST_CRON_COMMAND:
        reason = f"the command has {len(command)} characters, and cron reads {LONGEST_CRON_COMMAND}"
        raise InvalidInput(reason, fix="use shorter paths, or --as systemd")
    return (
        f"# persres-batch: {refresh.catalog_uri} brought up to date with {refresh.manifest_uri}\n"
        f"# Times are this machine's. Credentials, if any, are read from ~/{ENVIRONMENT}: lines NAME=value,\n"
        f"# with `chmod 600`. The output goes to the system's log: journalctl -t {refresh.name}\n"
        f"{refresh.cron.expression} {command}\n"
    )


def systemd_units(refresh: Refresh, program: Sequence[str], spec: str, *, grace_seconds: float) -> dict[str, str]:
    """A service and a timer of the user's own systemd, by file name without the stem: ".service" and ".timer".

    Args:
        grace_seconds: how long a run that is stopped may take to commit what it has in hand.
    """
    command = " ".join(map(_systemd_word, refresh.command(program, spec)))
    what = f"persres-batch: {refresh.catalog_uri} up to date".replace("%", "%%")
    service = f"""\
[Unit]
Description={what}

[Service]
Type=oneshot
# Credentials, if any: lines NAME=value, with `chmod 600`.
EnvironmentFile=-%h/{ENVIRONMENT}
ExecStart={command}
# A run that is stopped commits what it has in hand. Only the run itself is told to stop: it ends its workers.
KillMode=mixed
TimeoutStopSec={round(grace_seconds) + SERVICE_STOP_MARGIN_S}
"""
    times = "\n".join(f"OnCalendar={when}" for when in refresh.cron.on_calendar())
    timer = f"""\
[Unit]
Description={what} ({refresh.cron.expression})

[Timer]
{times}
# A night that the machine slept through is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {".service": service, ".timer": timer}


def _systemd_word(word: str) -> str:
    """A word of ExecStart that arrives as it is: systemd has its own quotes, variables and specifiers."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if re.fullmatch(r"[\w@%+=:,./$-]+", word) else f'"{word}"'
