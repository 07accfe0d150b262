"""The command that writes a scheduled refresh: schedule. `cli` makes it its own."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ...pipeline.spec.run_spec import RunSpec
    from ..schedule.units import Refresh

app = typer.Typer()

Form = Literal["raycronjob", "crontab", "systemd"]

SCHEDULE = """Write what makes `submit` run by itself, every night for example: for Kubernetes, cron or systemd.

It is ready to be used as it is, holds no secret, and says how to install it. Nights that overlap do no harm: the
second run finds the catalog held and ends with exit code 4.

Example: [bold]persres-batch schedule mugs.parquet --spec run.yaml --catalog out
--cron "0 3 * * *" --as systemd[/bold]"""
CRON = "Five fields: minute, hour, day of the month, month, weekday. `0 3 * * *` is every night at three."
FORM = (
    "raycronjob: a RayCronJob (KubeRay 1.6) with a cluster of its own each time; crontab: a line for cron; "
    "systemd: a service and a timer of your own."
)
IMAGE = "For raycronjob: the image with persres-batch in it, with its version."
NAME = "What it is called. Default: persres- and the catalog's name."
WORKERS = "Workers at once, as in `submit`; for raycronjob also the most GPU pods."
ADDRESS = "For crontab and systemd: the dashboard of a cluster that runs already. Default: this machine."
OUT = "Where to write it; for systemd the two files are named after it. Default: standard output."


@app.command(help=SCHEDULE)
def schedule(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="The manifest: a path or URI.")],
    spec: Annotated[Path, typer.Option("--spec", metavar="RUN.YAML", help="The run spec.")],
    catalog: Annotated[str, typer.Option("--catalog", metavar="URI", help="The catalog's folder or URI.")],
    cron: Annotated[str, typer.Option("--cron", metavar="EXPRESSION", help=CRON)],
    form: Annotated[Form, typer.Option("--as", help=FORM)],
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help=IMAGE)] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help=NAME)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help=WORKERS)] = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help=ADDRESS)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="As in `submit`.")] = "auto",
    prune: Annotated[bool, typer.Option("--prune", help="As in `submit`.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help=OUT)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already there.")] = False,
) -> None:
    from ...pipeline.spec.run_spec import RunSpec
    from ..schedule.cron import CronSchedule
    from ..schedule.units import Refresh, default_name

    in_cluster = form == "raycronjob"
    _check_choices(in_cluster=in_cluster, image=image, address=address, device=device)
    refresh = Refresh(
        name or default_name(catalog),
        CronSchedule.parse(cron),
        manifest if in_cluster else _absolute(manifest),
        catalog if in_cluster else _absolute(catalog),
        workers=workers,
        address=address,
        device=device,
        prune=prune,
    )
    run_spec = RunSpec.load(spec)
    files = _written(form, refresh, run_spec, os.path.abspath(spec), image, out or Path(refresh.name))
    if out is None:
        print(*(f"# {path.name}\n{text}" if len(files) > 1 else text for path, text in files.items()), sep="\n", end="")
    else:
        _write(files, force=force)
    for line in _next_steps(form, refresh, list(files), shown=out is None):
        print(line, file=sys.stderr)


def _check_choices(*, in_cluster: bool, image: str | None, address: str | None, device: str) -> None:
    from ...core.errors import InvalidInput

    if in_cluster and image is None:
        raise InvalidInput("--as raycronjob needs an image", fix="build one from jobs/deploy/Dockerfile: --image IMAGE")
    if in_cluster and address is not None:
        raise InvalidInput("a RayCronJob makes its own cluster, but --address is given", fix="leave --address out")
    if in_cluster and device == "cpu":
        raise InvalidInput("a RayCronJob's workers have GPUs, but --device cpu is given", fix="leave --device out")
    if not in_cluster and image is not None:
        raise InvalidInput("--image is for --as raycronjob", fix="leave --image out")


def _written(
    form: Form, refresh: Refresh, spec: RunSpec, spec_path: str, image: str | None, out: Path
) -> dict[Path, str]:
    """What is to be written where."""
    from ..schedule.kuberay import ray_cron_job, to_yaml
    from ..schedule.units import crontab_line, systemd_units

    if form == "raycronjob":
        assert image is not None
        comment = (
            f"persres-batch: {refresh.catalog_uri} brought up to date with {refresh.manifest_uri}\n"
            "Needs KubeRay 1.6 or newer with its feature gate RayCronJob on; times are the operator's, commonly UTC.\n"
            "jobs/deploy/raycluster.yaml says what each line of the cluster is for. Credentials, where no role of the\n"
            "cloud gives them, come from a Secret persres-credentials, which has to be made by hand."
        )
        return {out: to_yaml(ray_cron_job(refresh, spec, image=image), comment=comment)}
    program = _program()
    if form == "crontab":
        return {out: crontab_line(refresh, program, spec_path)}
    units = systemd_units(refresh, program, spec_path, grace_seconds=spec.recovery.grace_seconds)
    return {out.with_name(out.name.removesuffix(".service").removesuffix(".timer") + end): units[end] for end in units}


def _write(files: dict[Path, str], *, force: bool) -> None:
    from ...core.errors import InvalidInput

    there = [path for path in files if path.exists()]
    if there and not force:
        raise InvalidInput(f"{there[0]} is already there", fix="choose another name, or replace it with --force")
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


def _next_steps(form: Form, refresh: Refresh, paths: list[Path], *, shown: bool) -> list[str]:
    """When it will run, and how it is put to work."""
    if form == "raycronjob":
        now, zone = datetime.now(UTC), "UTC, if that is the operator's time"
    else:
        now, zone = datetime.now(), "this machine's time"
    times = ", ".join(time.strftime("%a %Y-%m-%d %H:%M") for time in refresh.cron.next_times(now))
    file = "FILE" if shown else str(paths[0])
    steps = {
        "raycronjob": f"kubectl apply -f {file}",
        "crontab": f"(crontab -l; cat {file}) | crontab -",
        "systemd": f"cp {' '.join(path.name if shown else str(path) for path in paths)} ~/.config/systemd/user/ && "
        f"systemctl --user daemon-reload && systemctl --user enable --now {paths[-1].name} && loginctl enable-linger",
    }
    return [f"next runs: {times} ({zone})", f"next: {steps[form]}"]


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _program() -> list[str]:
    """The command as cron and systemd find it, who know nothing of virtual environments."""
    script = Path(sys.executable).with_name("persres-batch")
    return [str(script)] if script.exists() else [sys.executable, "-m", "persres.jobs.cli"]
