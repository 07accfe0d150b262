"""The commands that maintain a catalog: `gc`, `forget` and `verify`."""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...core.exit_codes import ExitCode
from ...core.plural import plural
from ..format import format_size
from ..terminal.output import echo, echo_document
from .options import CatalogArgument, JsonOption
from .printing import json_text

if TYPE_CHECKING:
    from ...pipeline.catalog.lease import Lease
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.maintenance.forget import Forgotten
    from ...pipeline.maintenance.gc import Garbage
    from ...pipeline.maintenance.traces import Traces
    from ...pipeline.maintenance.verify import Finding, Verification

_TIME_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer()


@app.command(epilog=f"Exits with {ExitCode.CATALOG_HELD} if a run holds the catalog and --delete is given.")
def gc(
    catalog: CatalogArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the garbage; by default it is only listed.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Keep what is younger: a number with s, m, h or d.")
    ] = "24h",
    as_json: JsonOption = False,
) -> None:
    """List a catalog's garbage: files of lost or replaced attempts, torn records and debris.

    Nothing is removed without [bold]--delete[/bold], and never what is younger than
    [bold]--older-than[/bold]: a worker may still be about to commit it.

    Example: [bold]persres-batch gc s3://bucket/mugs --delete[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.maintenance.gc import collect_garbage, remove_garbage
    from ..observe.display import progress_bar
    from ..terminal.consoles import error_console

    age, store = _seconds(older_than), open_catalog(catalog)
    if delete:
        with hold(store, "gc") as lease, progress_bar(error_console(), "removing") as on_progress:
            garbage = collect_garbage(store, older_than_s=age, now=time.time())
            garbage = remove_garbage(
                store, garbage, generation=lease.generation, on_progress=on_progress, check=lease.confirm
            )
    else:
        garbage = collect_garbage(store, older_than_s=age, now=time.time())
    if as_json:
        echo_document(json_text(_garbage_values(garbage, deleted=delete)))
    else:
        echo(*_garbage_lines(store.uri, garbage, deleted=delete))


@app.command(epilog=f"Exits with {ExitCode.CATALOG_HELD} if a run holds the catalog.")
def forget(
    catalog: CatalogArgument,
    concept_ids: Annotated[
        list[str],
        typer.Argument(metavar="CONCEPT…", help="Ids of concepts: committed, failed, or left by a lost run."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be rewritten and removed.")] = False,
) -> None:
    """Remove every trace of concepts from a catalog: rows, images, index, and mentions in the documents of runs.

    All other concepts stay as they are, and readable at every moment. If it
    is interrupted, run it again. It does not reach copies that the store
    keeps (versions of objects, backups) or exported files. A manifest that
    still lists a concept brings it back.

    Example: [bold]persres-batch forget s3://bucket/faces ana-1 ben-2[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.maintenance.forget import forget as forget_concepts
    from ...pipeline.maintenance.traces import find_traces, require_known
    from ..observe.display import progress_bar
    from ..terminal.consoles import error_console

    store = open_catalog(catalog)
    with progress_bar(error_console(), "searching") as on_progress:
        if dry_run:
            traces = find_traces(store, concept_ids, on_progress=on_progress)
            require_known(store, traces)
            lines = _traces_lines(store.uri, traces)
        else:
            with hold(store, "forget") as lease:
                forgotten = forget_concepts(
                    store, concept_ids, generation=lease.generation, on_progress=on_progress, check=lease.confirm
                )
            lines = _forgotten_lines(store.uri, forgotten)
    echo(*lines)


@app.command(epilog=f"Exits with {ExitCode.FAILED} if there is a fault.")
def verify(catalog: CatalogArgument, as_json: JsonOption = False) -> None:
    """Read a whole catalog: check digests, shapes, numbers and images, and that data and records agree.

    Every fault is printed with its concept, file and fix.

    Example: [bold]persres-batch verify s3://bucket/mugs[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.maintenance.verify import verify as verify_catalog
    from ..observe.display import progress_bar
    from ..terminal.consoles import error_console

    store = open_catalog(catalog)
    with progress_bar(error_console(), "reading files") as on_progress:
        verification = verify_catalog(store, on_progress=on_progress)
    if as_json:
        echo_document(json_text(_verification_values(verification)))
    else:
        echo(*_verification_lines(store.uri, verification))
    raise typer.Exit(ExitCode.OK if verification.clean else ExitCode.FAILED)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is no duration; give for example 90s, 30m, 24h or 7d")
    return timedelta(**{_TIME_UNITS[match[2]]: float(match[1])}).total_seconds()


@contextmanager
def hold(store: CatalogStore, command: str) -> Iterator[Lease]:
    """Hold the catalog for a command, which the lease names."""
    from ...pipeline.catalog.lease import hold_lease, owner_here
    from ...pipeline.run.run_id import later_run_id

    run_id = later_run_id((), datetime.now(UTC), secrets.token_hex(3))  # a name alone: it commits nothing
    with hold_lease(store, f"{command}-{run_id}", owner_here()) as lease:
        yield lease


def _garbage_lines(uri: str, garbage: Garbage, *, deleted: bool) -> Iterator[str]:
    for one in garbage.objects:
        yield f"{one.path}  {format_size(one.size)}  ({one.why})"
    total = f"{plural(len(garbage.objects), 'object')}, {format_size(garbage.size)}"
    if deleted:
        yield f"{uri}: removed {total}"
    elif garbage.objects:
        yield f"{uri}: {total} of garbage; --delete removes them"
    else:
        yield f"{uri}: no garbage"
    if garbage.too_young:
        yield f"kept {plural(garbage.too_young, 'more object')} like these, because they are too young"


def _garbage_values(garbage: Garbage, *, deleted: bool) -> dict[str, Any]:
    return {
        "found": [asdict(one) for one in garbage.objects],
        "removed": [one.path for one in garbage.objects] if deleted else [],
        "bytes": garbage.size,
        "too_young": garbage.too_young,
    }


def _traces_lines(uri: str, traces: Traces) -> Iterator[str]:
    yield from (f"  {path}: to be rewritten, because it holds other concepts too" for path in sorted(traces.shared))
    yield from (f"  {path}: to be removed" for path in sorted(traces.own))
    yield from (f"  {path}: to be removed, because it cannot be read" for path in sorted(traces.unreadable))
    yield from (f"  {path}: to be rewritten without them, or removed" for path in sorted(traces.documents))
    count = plural(len(traces.concept_ids), "concept")
    yield f"{uri}: nothing is changed yet; without --dry-run, {count} would be forgotten"


def _forgotten_lines(uri: str, forgotten: Forgotten) -> Iterator[str]:
    yield (
        f"{uri}: forgot {', '.join(forgotten.concept_ids)}: {plural(forgotten.rewritten, 'data file')} rewritten, "
        f"{forgotten.removed} removed, {plural(forgotten.documents, 'document')} of runs changed"
    )
    if "://" in uri:
        yield "a bucket with versioning still keeps the old objects as versions: remove those too"
    yield "a manifest that still lists a concept brings it back at the next submit: remove it there"


def _finding_line(finding: Finding) -> str:
    concept = f"concept {finding.concept_id}, " if finding.concept_id else ""
    return f"{concept}{finding.file}: {finding.fault}. Fix: {finding.fix}"


def _verification_lines(uri: str, verification: Verification) -> Iterator[str]:
    """All faults, the totals, and what is no fault but worth knowing."""
    yield from map(_finding_line, verification.findings)
    read = (
        f"{uri}: {plural(verification.concepts, 'concept')}, {plural(verification.files, 'file')}, "
        f"{plural(verification.images, 'rendering')}"
    )
    concepts = len({one.concept_id for one in verification.findings})
    faults = f"{plural(len(verification.findings), 'fault')} in {plural(concepts, 'concept')}"
    yield f"{read}: {'everything is as it was committed' if verification.clean else faults}"
    if verification.without_digest:
        count = plural(verification.without_digest, "concept")
        yield f"{count} committed by a version that kept no digests: checked without one"
    if objects := verification.garbage.objects:
        kinds = ", ".join(f"{count} {why}" for why, count in sorted(Counter(one.why for one in objects).items()))
        yield f"no fault, but {plural(len(objects), 'object')} of garbage ({kinds}): see `persres-batch gc`"


def _verification_values(verification: Verification) -> dict[str, Any]:
    return {
        "clean": verification.clean,
        "concepts": verification.concepts,
        "files": verification.files,
        "renderings": verification.images,
        "without_digest": verification.without_digest,
        "findings": [asdict(one) for one in verification.findings],
        "garbage": [asdict(one) for one in verification.garbage.objects],
    }
