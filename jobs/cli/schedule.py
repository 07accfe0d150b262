"""The command `schedule`."""

from __future__ import annotations

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...core.errors import InvalidInput
from ...pipeline.storage.output_file import require_absent, write_file
from ..terminal.output import echo, echo_document
from .options import CatalogOption, DeviceOption, ForceOption, ManifestArgument, PruneOption, SpecOption
from .printing import print_choices
from .targets import ChosenSpec, choose_catalog, choose_spec

if TYPE_CHECKING:
    from ..schedule.units import Refresh

Form = Literal["raycronjob", "crontab", "systemd"]

app = typer.Typer()


@app.command()
def schedule(
    manifest: ManifestArgument,
    cron: Annotated[
        str,
        typer.Option(
            "--cron",
            metavar="EXPRESSION",
            help="Five fields: minute, hour, day of the month, month, weekday. `0 3 * * *` is every night at three.",
        ),
    ],
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="raycronjob: a RayCronJob (KubeRay 1.6) with a new cluster each time; crontab: a line for cron; "
            "systemd: a service and a timer of the user.",
        ),
    ],
    spec: SpecOption = None,
    catalog: CatalogOption = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="For raycronjob: the image with persres-batch in it, and its version."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name. Default: persres- and the catalog's name.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="The number of workers, as in `submit`; for raycronjob also the most GPU pods."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDR",
            help="For crontab and systemd: the dashboard of a running cluster. Default: this machine.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    prune: PruneOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write; for systemd, two files are named after it. Default: standard output.",
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a schedule that runs `submit` by itself, every night for example: for Kubernetes, cron or systemd.

    It is ready to use, holds no secret, and is followed by the command that
    installs it. Overlapping runs do no harm: the second finds the catalog
    held, and exits.

    Example: [bold]persres-batch schedule mugs.parquet --cron "0 3 * * *" --as systemd[/bold]
    """
    from ..schedule.cron import CronSchedule
    from ..schedule.units import Refresh, default_name

    in_cluster = form == "raycronjob"
    _check_choices(in_cluster=in_cluster, image=image, address=address, device=device)
    chosen_spec = choose_spec(manifest, spec)
    chosen_catalog = choose_catalog(manifest, catalog, chosen_spec)
    print_choices(chosen_spec.line, chosen_catalog.line)
    refresh = Refresh(
        name or default_name(chosen_catalog.uri),
        CronSchedule.parse(cron),
        manifest if in_cluster else _absolute(manifest),
        chosen_catalog.uri if in_cluster else _absolute(chosen_catalog.uri),
        workers=workers,
        address=address,
        device=device,
        prune=prune,
    )
    files = _render(form, refresh, chosen_spec, image, out or Path(refresh.name))
    if out is None:
        echo_document("\n".join(f"# {path.name}\n{text}" if len(files) > 1 else text for path, text in files.items()))
    else:
        _write(files, force=force)
    echo(*_next_steps(form, refresh, list(files), on_stdout=out is None), error=True)


def _check_choices(*, in_cluster: bool, image: str | None, address: str | None, device: str) -> None:
    if in_cluster and image is None:
        raise InvalidInput("--as raycronjob needs an image", fix="build one from jobs/deploy/Dockerfile: --image IMAGE")
    if in_cluster and address is not None:
        raise InvalidInput("a RayCronJob makes its own cluster, but --address is given", fix="leave --address out")
    if in_cluster and device == "cpu":
        raise InvalidInput("a RayCronJob's workers have GPUs, but --device cpu is given", fix="leave --device out")
    if not in_cluster and image is not None:
        raise InvalidInput("--image is for --as raycronjob", fix="leave --image out")


def _render(form: Form, refresh: Refresh, spec: ChosenSpec, image: str | None, out: Path) -> dict[Path, str]:
    """The text of each file to write."""
    from ..schedule.kuberay import ray_cron_job, to_yaml
    from ..schedule.units import crontab_line, systemd_units

    if form == "raycronjob":
        assert image is not None
        comment = (
            f"persres-batch: keeps {refresh.catalog_uri} up to date with {refresh.manifest_uri}\n"
            "Needs KubeRay 1.6 or newer with its feature gate RayCronJob on; times are the operator's, commonly UTC.\n"
            "jobs/deploy/raycluster.yaml explains each line of the cluster. Credentials, unless a role of the cloud\n"
            "gives them, come from a Secret persres-credentials, which has to be created by hand."
        )
        return {out: to_yaml(ray_cron_job(refresh, spec.spec, image=image), comment=comment)}
    if spec.path is None:
        raise InvalidInput(
            f"a schedule needs a run spec ({spec.place})",
            fix="write one beside the manifest with `persres-batch init`, or give --spec RUN.YAML",
        )
    spec_path = _absolute(spec.path)
    if form == "crontab":
        return {out: crontab_line(refresh, _program(), spec_path)}
    units = systemd_units(refresh, _program(), spec_path, grace_seconds=spec.spec.recovery.grace_seconds)
    return {out.with_name(out.name.removesuffix(".service").removesuffix(".timer") + end): units[end] for end in units}


def _write(files: dict[Path, str], *, force: bool) -> None:
    require_absent(files, force=force)
    for path, text in files.items():
        write_file(path, text)
        echo(f"wrote {path}")


def _next_steps(form: Form, refresh: Refresh, paths: list[Path], *, on_stdout: bool) -> list[str]:
    """The next times of the schedule, and the command that installs it."""
    if form == "raycronjob":
        now, zone = datetime.now(UTC), "UTC, if that is the operator's time"
    else:
        now, zone = datetime.now(), "this machine's time"
    times = ", ".join(time.strftime("%a %Y-%m-%d %H:%M") for time in refresh.cron.next_times(now))
    file = "FILE" if on_stdout else shlex.quote(str(paths[0]))
    units = shlex.join(path.name if on_stdout else str(path) for path in paths)
    steps = {
        "raycronjob": f"kubectl apply -f {file}",
        "crontab": f"(crontab -l; cat {file}) | crontab -",
        "systemd": f"cp {units} ~/.config/systemd/user/ && "
        f"systemctl --user daemon-reload && systemctl --user enable --now {paths[-1].name} && loginctl enable-linger",
    }
    return [f"next runs: {times} ({zone})", f"next: {steps[form]}"]


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _program() -> list[str]:
    """The command with absolute paths, because cron and systemd know no virtual environment."""
    script = Path(sys.executable).with_name("persres-batch")
    return [str(script)] if script.exists() else [sys.executable, "-m", "persres.jobs.cli"]
