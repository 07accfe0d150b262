"""The command line: its commands, its exit codes, and how it prints errors.

A command imports what is heavy when it runs, so that `--help` is instant.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Annotated

import typer

from ...core.errors import ManifestInvalid, PersresError
from ...core.exit_codes import ExitCode
from ..terminal.output import echo, echo_error, standard_streams
from . import bench, catalog, demo, init, maintenance, models, plan, repair, runs, schedule, submit
from .printing import problem_line

_VERSIONS_SHOWN = ("persres-batch", "torch", "ray", "diffusers")


def _exit_codes() -> str:
    """The table of exit codes at the end of `--help`."""
    lines = [
        textwrap.fill(code.meaning, 76, initial_indent=f"{code:4}  ", subsequent_indent=" " * 6) for code in ExitCode
    ]
    return "\n".join(["Exit codes:", *lines])


app = typer.Typer(
    name="persres-batch",
    help="""Personalize a text-to-image model for a whole catalog of concepts, and render them.

A manifest goes in (concepts, reference images, prompts), a catalog of
residuals and renderings comes out. Submitting again does only what changed.

Example: [bold]persres-batch submit mugs.parquet[/bold]""",
    epilog=_exit_codes(),
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_versions(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    for name in _VERSIONS_SHOWN:
        try:
            echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            echo(f"{name} is not installed")
    raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", envvar="PERSRES_DEBUG", help="Show an error's traceback.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_versions,
            help="Show the versions of persres-batch, torch, ray and diffusers, and exit.",
        ),
    ] = False,
) -> None:
    if debug:
        os.environ["PERSRES_DEBUG"] = "1"


for module in (demo, init, plan, submit, catalog, runs, schedule, models, maintenance, repair, bench):
    app.add_typer(module.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and exit with its code: the console script."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of packages that nothing here needs
    with standard_streams():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="persres-batch")
    except PersresError as error:
        if os.environ.get("PERSRES_DEBUG"):
            raise
        if isinstance(error, ManifestInvalid):
            echo(*map(problem_line, error.problems), error=True)
        echo_error(f"persres-batch: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("PERSRES_DEBUG"):
            raise
        echo_error(f"persres-batch: {type(error).__name__}: {error}")
        echo_error("for the traceback: persres-batch --debug COMMAND …")
        sys.exit(ExitCode.FAILED)
