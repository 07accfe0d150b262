"""A run spec's models brought to this machine, with a bar to look at while they come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ...pipeline.models.folder import ResolvedModel, Role
from ...pipeline.models.remote_folder import OnBytes
from ...pipeline.models.resolve import model_on_this_machine
from ...pipeline.planning.run_models import resolve_base_model, resolve_scorer
from ...pipeline.spec.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model that is on this machine; `name` is what the run spec calls it."""

    role: Role
    name: str
    model: ResolvedModel


def fetch_models(spec: RunSpec, console: Console) -> list[FetchedModel]:
    """The base model of a spec and its scorer, if it has one: found here, or fetched.

    Raises:
        InvalidInput: one cannot be used, or does not suit the spec.
        StoreError: one cannot be had: its store or the Hub does not answer, or there is no room.
    """
    with _bytes_shown(console, spec.base_model) as on_bytes:
        base = FetchedModel("base_model", spec.base_model, resolve_base_model(spec, on_bytes=on_bytes))
    if spec.scorer is None:
        return [base]
    with _bytes_shown(console, spec.scorer) as on_bytes:
        scorer = resolve_scorer(spec, on_bytes=on_bytes)
    return [base, FetchedModel("scorer", spec.scorer, scorer)] if scorer else [base]


def fetch_planned(spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None, console: Console) -> None:
    """The weights of models that a run was planned with, before workers of this machine ask for them.

    Raises:
        InvalidInput: one has another revision by now.
        StoreError: as in `fetch_models`.
    """
    planned: list[tuple[Role, str | None, ResolvedModel | None]] = [
        ("base_model", spec.base_model, base),
        ("scorer", spec.scorer, scorer),
    ]
    for role, name, model in planned:
        if name is not None and model is not None and not model.has_weights:
            with _bytes_shown(console, name) as on_bytes:
                model_on_this_machine(model, name, role, on_bytes=on_bytes)


@contextmanager
def _bytes_shown(console: Console, name: str) -> Iterator[OnBytes | None]:
    """What to call with bytes so far and in all; None off a terminal, where the log says it."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
