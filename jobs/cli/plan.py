"""The commands `validate` and `plan`, which start nothing and write nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ...core.exit_codes import ExitCode
from ...core.plural import plural
from ..format import estimate_lines
from ..terminal.output import echo, echo_document
from .options import CatalogOption, JsonOption, ManifestArgument, SpecOption, WorkersOption
from .printing import failure_lines, json_text, print_choices, problem_line, shortened
from .targets import ChosenCatalog, ChosenSpec, choose_catalog, choose_spec

if TYPE_CHECKING:
    from ...pipeline.planning.cost import CostEstimate
    from ...pipeline.planning.plan import RunPlan, Shard
    from ...pipeline.planning.validation import ValidationReport
    from ..cluster.placement import Placement

SHARDS_SHOWN = 20
REMOVED_SHOWN = 20

app = typer.Typer()


@app.command(epilog=f"Exits with {ExitCode.INVALID_INPUT} if there is a problem.")
def validate(manifest: ManifestArgument, spec: SpecOption = None, as_json: JsonOption = False) -> None:
    """Check a manifest, and list every problem with its row, column, value and fix.

    Opens every reference image, as a run would.

    Example: [bold]persres-batch validate mugs.parquet[/bold]
    """
    from ...pipeline.planning.prepare import tokenizer_of
    from ...pipeline.planning.run_models import resolve_models
    from ...pipeline.planning.validation import validate_manifest
    from ..observe.display import progress_bar
    from ..terminal.consoles import error_console

    chosen = choose_spec(manifest, spec)
    print_choices(chosen.line)
    base, model_warnings = resolve_models(chosen.spec, weights=False)
    tokenizer = tokenizer_of(base)
    with progress_bar(error_console(), "opening reference images") as on_row:
        report = validate_manifest(manifest, chosen.spec, tokenizer=tokenizer, on_progress=on_row)
    report.warnings.extend(model_warnings)
    if as_json:
        echo_document(json_text({"problems": report.problems, "warnings": report.warnings, "spec": chosen.name}))
    else:
        echo(*_validation_lines(manifest, report))
    raise typer.Exit(ExitCode.OK if report.valid else ExitCode.INVALID_INPUT)


@app.command()
def plan(
    manifest: ManifestArgument,
    spec: SpecOption = None,
    catalog: CatalogOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what `submit` would do: the concepts to train, to render only, and to leave as they are.

    Estimates device hours, time and (with `prices` in the run spec) money
    from earlier runs of the catalog.

    Example: [bold]persres-batch plan mugs.parquet[/bold]
    """
    from ..cluster.placement import Placement

    chosen_spec = choose_spec(manifest, spec)
    chosen_catalog = choose_catalog(manifest, catalog, chosen_spec)
    print_choices(chosen_spec.line, chosen_catalog.line)
    print_plan(manifest, chosen_spec, chosen_catalog, Placement(workers), as_json=as_json)


def print_plan(
    manifest: str,
    spec: ChosenSpec,
    catalog: ChosenCatalog,
    where: Placement,
    *,
    prune: bool = False,
    as_json: bool = False,
) -> None:
    """Print the plan of a submit; `prune`: including the concepts it would forget."""
    from ...pipeline.catalog.missing_files import read_present
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.planning.cost import estimate_cost, workload_of
    from ...pipeline.planning.prepare import prepare_run
    from ...pipeline.planning.throughput import read_measured_runs
    from ..cluster.placement import local_workers
    from ..observe.display import progress_bar
    from ..submit import split_into_shards
    from ..terminal.consoles import error_console

    committed = read_present(store := CatalogStore(catalog.uri))
    with progress_bar(error_console(), "reading references") as on_digest:
        prepared = prepare_run(manifest, spec.spec, committed, on_digest=on_digest)
    run_plan: RunPlan = prepared.plan(committed)
    workers = local_workers(where, spec.spec) if run_plan.has_work else 1  # counting GPUs loads torch
    shards = split_into_shards(run_plan, spec.spec, workers)
    cost = estimate_cost(
        workload_of(shards, spec.spec, prepared.base.revision),
        read_measured_runs(store),
        spec.spec.prices,
        workers,
        device=None if where.device == "auto" else where.device,
    )
    if as_json:
        values = plan_values(run_plan, shards, prune=prune, cost=cost)
        named = {"warnings": prepared.warnings, "spec": spec.name, "catalog": catalog.uri}
        echo_document(json_text({**values, **named}))
    else:
        echo(*(f"warning: {warning}" for warning in prepared.warnings))
        echo(*plan_lines(run_plan, shards, prune=prune, cost=cost))


def plan_lines(
    plan: RunPlan, shards: Sequence[Shard], *, prune: bool = False, cost: CostEstimate | None = None
) -> Iterator[str]:
    """A plan for people; `prune`: the concepts that the manifest no longer lists would be removed."""
    yield (
        f"{plural(plan.rows, 'row')}: {len(plan.train)} to train and render, {len(plan.render_only)} to render only, "
        f"{len(plan.current)} current, {len(plan.failures)} failed"
    )
    if plan.removed:
        fate = "they are removed at the end:" if prune else "they are kept (`submit --prune` removes them):"
        yield f"{plural(len(plan.removed), 'concept')} of the catalog that the manifest no longer lists; {fate}"
        yield from shortened([f"  {concept_id}" for concept_id in plan.removed], REMOVED_SHOWN)
    yield from failure_lines(plan.failures)
    if not shards:
        yield "nothing else to do" if prune and plan.removed else "nothing to do"
    else:
        yield f"{plural(len(shards), 'shard')}:"
        lines = [f"  {shard.shard_id}: {plural(len(shard.concepts), 'concept')}" for shard in shards]
        yield from shortened(lines, SHARDS_SHOWN)
    if cost is not None:
        yield from estimate_lines(cost)


def plan_values(
    plan: RunPlan, shards: Sequence[Shard], *, prune: bool = False, cost: CostEstimate | None = None
) -> dict[str, Any]:
    """A plan for `--json`."""
    return {
        "rows": plan.rows,
        "train": [concept.concept_id for concept in plan.train],
        "render_only": [concept.concept_id for concept in plan.render_only],
        "current": list(plan.current),
        "removed": list(plan.removed),
        "pruned": list(plan.removed) if prune else [],
        "failures": plan.failures,
        "shards": [{"shard_id": shard.shard_id, "kind": shard.kind, "concepts": shard.concept_ids} for shard in shards],
        "cost": cost,
    }


def _validation_lines(manifest: str, report: ValidationReport) -> Iterator[str]:
    yield from map(problem_line, report.problems)
    yield from (f"warning: {warning}" for warning in report.warnings)
    if report.valid:
        yield f"{manifest}: {plural(len(report.rows), 'concept')}, no problems"
    else:
        problems, sound = plural(len(report.problems), "problem"), plural(len(report.rows), "concept")
        yield f"{manifest}: {problems}; {sound} without any"
