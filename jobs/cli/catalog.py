"""The commands that keep a catalog in order: gc, forget, verify. `cli` makes them its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from . import upkeep_text

if TYPE_CHECKING:
    from ...pipeline.catalog.lease import Lease
    from ...pipeline.catalog.store import CatalogStore

app = typer.Typer()

FAULTS_FOUND = 1
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is no length of time; say for example 90s, 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: float(match[1])}).total_seconds()


CatalogArgument = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog's folder or URI.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command(help=upkeep_text.GC)
def gc(
    catalog: CatalogArgument,
    delete: Annotated[bool, typer.Option("--delete", help=upkeep_text.GC_DELETE)] = False,
    older_than: Annotated[str, typer.Option(metavar="AGE", help=upkeep_text.GC_OLDER_THAN)] = "24h",
    as_json: JsonOption = False,
) -> None:
    from ...pipeline.maintenance.gc import collect_garbage, remove_garbage
    from ..observe.display import counting

    age, store = _seconds(older_than), _catalog(catalog)
    if delete:
        with _held(store, "gc") as lease, counting(Console(stderr=True), "removing") as on_progress:
            found = collect_garbage(store, older_than_s=age, now=time.time())
            remove_garbage(store, found, on_progress=on_progress, check=lease.check)
    else:
        found = collect_garbage(store, older_than_s=age, now=time.time())
    _print(
        as_json,
        lambda: upkeep_text.garbage_values(found, deleted=delete),
        lambda: upkeep_text.garbage_lines(store.uri, found, deleted=delete),
    )


@app.command(help=upkeep_text.FORGET)
def forget(
    catalog: CatalogArgument,
    concept_ids: Annotated[list[str], typer.Argument(metavar="CONCEPT…", help=upkeep_text.FORGET_CONCEPTS)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help=upkeep_text.FORGET_DRY_RUN)] = False,
) -> None:
    from ...pipeline.maintenance.forget import forget as forget_concepts
    from ...pipeline.maintenance.traces import find_traces, require_known
    from ..observe.display import counting

    store = _catalog(catalog)
    with counting(Console(stderr=True), "searching") as on_progress:
        if dry_run:
            traces = find_traces(store, concept_ids, on_progress=on_progress)
            require_known(store, traces)
            lines = upkeep_text.traces_lines(store.uri, traces)
        else:
            with _held(store, "forget") as lease:
                forgotten = forget_concepts(store, concept_ids, on_progress=on_progress, check=lease.check)
            lines = upkeep_text.forgotten_lines(store.uri, forgotten)
    print(*lines, sep="\n")


@app.command(help=upkeep_text.VERIFY)
def verify(catalog: CatalogArgument, as_json: JsonOption = False) -> None:
    from ...pipeline.maintenance.verify import verify as verify_catalog
    from ..observe.display import counting

    store = _catalog(catalog)
    with counting(Console(stderr=True), "reading files") as on_progress:
        found = verify_catalog(store, on_progress=on_progress)
    _print(
        as_json,
        lambda: upkeep_text.verification_values(found),
        lambda: upkeep_text.verification_lines(store.uri, found),
    )
    raise typer.Exit(0 if found.clean else FAULTS_FOUND)


def _catalog(uri: str) -> CatalogStore:
    """An existing catalog; a mistyped address is not an empty one."""
    from ...core.errors import InvalidInput
    from ...pipeline.catalog.store import CatalogStore

    store = CatalogStore(uri)
    if not store.list(""):
        raise InvalidInput(f"there is no catalog at {store.uri}", fix="check the path, or submit a manifest first")
    return store


@contextmanager
def _held(store: CatalogStore, doing: str) -> Iterator[Lease]:
    """The catalog for this command alone; whoever wants it meanwhile reads which command has it."""
    from ...pipeline.catalog.lease import hold_lease, owner_here
    from ...pipeline.run.run_id import new_run_id

    with hold_lease(store, f"{doing}-{new_run_id(store)}", owner_here()) as lease:
        yield lease


def _print(as_json: bool, values: Callable[[], object], lines: Callable[[], Iterable[str]]) -> None:
    print(json.dumps(values(), indent=1, sort_keys=True) if as_json else "\n".join(lines()))
