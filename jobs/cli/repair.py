"""The command `repair`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ...core.exit_codes import ExitCode
from ...core.plural import plural
from ..terminal.output import echo, echo_document
from .maintenance import hold
from .options import CatalogArgument, JsonOption
from .printing import json_text

if TYPE_CHECKING:
    from ...pipeline.maintenance.repair import Loss, Repair

_MOST_NAMED = 20

app = typer.Typer()


@app.command(
    epilog=f"Exits with {ExitCode.CONCEPTS_FAILED} if something could not be recovered, "
    f"with {ExitCode.CATALOG_HELD} if a run holds the catalog."
)
def repair(
    catalog: CatalogArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be recovered.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild a catalog's index from its data files, if a part of the index is lost or damaged.

    Whatever cannot be recovered is named, and the next submit does it again.
    A whole index is left as it is.

    Example: [bold]persres-batch repair s3://bucket/mugs --dry-run[/bold]
    """
    from ...pipeline.catalog.existing import open_catalog
    from ...pipeline.maintenance.repair import find_repair
    from ...pipeline.maintenance.repair import repair as repair_catalog
    from ..observe.display import progress_bar
    from ..terminal.consoles import error_console

    store = open_catalog(catalog)
    with progress_bar(error_console(), "reading files") as on_progress:
        if dry_run:
            result = find_repair(store, on_progress=on_progress)
        else:
            with hold(store, "repair") as lease:
                result = repair_catalog(store, generation=lease.generation, on_progress=on_progress)
    if as_json:
        echo_document(json_text({**asdict(result), "dry_run": dry_run}))
    else:
        echo(*_lines(store.uri, result, dry_run=dry_run))
    raise typer.Exit(ExitCode.CONCEPTS_FAILED if any(map(_is_lost, result.losses)) else ExitCode.OK)


def _lines(uri: str, result: Repair, *, dry_run: bool) -> Iterator[str]:
    if result.fault is None:
        yield f"{uri}: the index is whole, with {plural(result.concepts, 'concept')}: nothing to repair"
        return
    yield f"fault: {result.fault}"
    for loss in result.losses:
        yield f"{'not recovered' if _is_lost(loss) else 'replaced'}: {loss.what}: {loss.reason}"
    if result.recovered:
        yield f"{plural(len(result.recovered), 'concept')} recovered from data files: {_some(result.recovered)}"
    if result.unrendered:
        count = plural(len(result.unrendered), "concept")
        yield f"{count} without renderings, which the next submit renders: {_some(result.unrendered)}"
    done = "would have" if dry_run else "has"
    yield f"{uri}: the rebuilt index {done} {plural(result.concepts, 'concept')}"
    if dry_run:
        yield "nothing is changed yet"
    else:
        yield "submit the manifest again, which does whatever is missing; `persres-batch verify` reads everything back"


def _is_lost(loss: Loss) -> bool:
    """Whether it is data: the rebuilt index replaces a part of the old one."""
    return not loss.what.startswith(("index/", "commits/"))


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
