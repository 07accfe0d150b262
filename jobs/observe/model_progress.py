"""Fetching the models of a run spec to this machine, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from ...pipeline.models.folder import ResolvedModel, Role
from ...pipeline.models.remote_folder import OnBytes
from ...pipeline.models.resolve import model_on_this_machine
from ...pipeline.planning.run_models import (
    check_scorer_weights,
    check_spec_fits_model,
    resolve_base_model,
    resolve_scorer,
)
from ...pipeline.spec.run_spec import RunSpec
from ..terminal.consoles import PlainTextColumn


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model that is on this machine; `name` is its name in the run spec."""

    role: Role
    name: str
    model: ResolvedModel


def fetch_models(spec: RunSpec, console: Console) -> list[FetchedModel]:
    """Fetch the base model of a spec and its scorer, if it has one, unless they are on this machine already.

    Raises:
        InvalidInput: a model cannot be used, or does not match the spec.
        StoreError: a model cannot be fetched: its store or the Hub is unavailable, or the disk is full.
    """
    with _download_bar(console, spec.base_model) as on_bytes:
        base = FetchedModel("base_model", spec.base_model, resolve_base_model(spec, on_bytes=on_bytes))
    if spec.scorer is None:
        return [base]
    with _download_bar(console, spec.scorer) as on_bytes:
        scorer = resolve_scorer(spec, on_bytes=on_bytes)
    check_scorer_weights(spec, scorer)
    return [base, FetchedModel("scorer", spec.scorer, scorer)] if scorer else [base]


def fetch_planned_models(spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None, console: Console) -> None:
    """Fetch the weights of the models that a run was planned with, before the workers on this machine load them.

    Raises:
        InvalidInput: a model's revision has changed since, or its weights do not fit its configuration.
        StoreError: as in `fetch_models`.
    """
    planned: list[tuple[Role, str | None, ResolvedModel | None]] = [
        ("base_model", spec.base_model, base),
        ("scorer", spec.scorer, scorer),
    ]
    for role, name, model in planned:
        if name is not None and model is not None and not model.has_weights:
            with _download_bar(console, name) as on_bytes:
                found = model_on_this_machine(model, name, role, on_bytes=on_bytes)
            if role == "scorer":
                check_scorer_weights(spec, found)
            else:
                check_spec_fits_model(spec, found.path)


@contextmanager
def _download_bar(console: Console, name: str) -> Iterator[OnBytes | None]:
    """Yields the function that updates a bar, called with (bytes so far, total); None off a terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = (PlainTextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
