"""The commands: parse, call, print, exit code. Whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from ...core.errors import ManifestInvalid, PersresError
from . import catalog as catalog_commands
from . import cli_text, run_text
from . import models as model_commands
from . import runs as run_commands
from . import schedule as schedule_commands

if TYPE_CHECKING:
    from ...pipeline.planning.plan import RunPlan
    from ...pipeline.spec.run_spec import RunSpec
    from ..cluster.placement import WhereToRun
    from ..submit import FinishedRun

app = typer.Typer(
    name="persres-batch",
    help=cli_text.APP,
    epilog=cli_text.EXIT_CODES,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

OK, FAILED, INVALID_INPUT, CONCEPTS_FAILED = 0, 1, 2, 3

ManifestArgument = Annotated[str, typer.Argument(metavar="MANIFEST", help=cli_text.MANIFEST)]
CatalogArgument = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog's folder or URI.")]
SpecOption = Annotated[Path, typer.Option("--spec", metavar="RUN.YAML", help=cli_text.SPEC)]
CatalogOption = Annotated[str, typer.Option("--catalog", metavar="URI", help=cli_text.CATALOG)]
WorkersOption = Annotated[int | None, typer.Option(min=1, help=cli_text.WORKERS)]
LogFormatOption = Annotated[
    Literal["text", "json"], typer.Option(envvar="PERSRES_LOG_FORMAT", help=run_text.LOG_FORMAT)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", envvar="PERSRES_DEBUG", help="Show an error's traceback.")]


@app.callback()
def _options(
    debug: DebugOption = False,
) -> None:
    if debug:
        os.environ["PERSRES_DEBUG"] = "1"


@app.command(help=cli_text.DEMO)
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes.")] = Path("persres-demo"),
    concepts: Annotated[int, typer.Option(min=1, help="How many concepts.")] = 12,
    workers: WorkersOption = None,
) -> None:
    from ...pipeline.spec.run_spec import RunSpec
    from ...pipeline.spriteworld.demo_catalog import write_demo
    from .demo import demo_table

    console = Console(stderr=True)
    write_demo(out, concepts=concepts)
    manifest, spec_file, catalog = str(out / "manifest.parquet"), out / "run.yaml", str(out / "catalog")
    console.print(f"wrote {concepts} concepts to {out}; this is the same as:", highlight=False)
    by_hand = f"  persres-batch submit {manifest} --spec {spec_file} --catalog {catalog}"
    console.print(by_hand, highlight=False, soft_wrap=True)
    finished = _submit_here(manifest, RunSpec.load(spec_file), catalog, _where(workers))
    if finished.summary.committed or finished.summary.current:
        Console().print(demo_table(catalog, manifest))
    _print_summary(finished, _report_of(finished, catalog))
    raise typer.Exit(CONCEPTS_FAILED if finished.summary.failed else OK)


@app.command(help=cli_text.INIT)
def init(
    path: Annotated[Path, typer.Argument(metavar="[RUN.YAML]", help="Where to write it.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
) -> None:
    from ...pipeline.spec.run_spec import RunSpec

    if path.exists() and not force:
        raise _invalid(f"{path} is already there", "choose another name, or replace it with --force")
    path.write_text(RunSpec.commented_yaml(), encoding="utf-8")
    print(f"wrote {path}: every setting with its default and what it does")
    print(f"next: persres-batch validate MANIFEST --spec {path}")


@app.command(help=cli_text.VALIDATE)
def validate(manifest: ManifestArgument, spec: SpecOption, as_json: JsonOption = False) -> None:
    from ...pipeline.planning.prepare import tokenizer_of
    from ...pipeline.planning.run_models import resolve_base_model
    from ...pipeline.planning.validation import validate_manifest
    from ..observe.display import counting

    run_spec = _load(spec)
    tokenizer = tokenizer_of(resolve_base_model(run_spec, weights=False))
    with counting(Console(stderr=True), "opening reference images") as on_row:
        found = validate_manifest(manifest, run_spec, tokenizer=tokenizer, on_progress=on_row)
    if as_json:
        print(cli_text.json_of({"problems": found.problems, "warnings": found.warnings}))
    else:
        print("\n".join(cli_text.validation_lines(manifest, found)))
    raise typer.Exit(OK if found.valid else INVALID_INPUT)


@app.command(help=cli_text.PLAN)
def plan(
    manifest: ManifestArgument,
    spec: SpecOption,
    catalog: CatalogOption,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    _print_plan(manifest, _load(spec), catalog, _where(workers), as_json=as_json)


@app.command(help=cli_text.SUBMIT)
def submit(
    manifest: ManifestArgument,
    spec: SpecOption,
    catalog: CatalogOption,
    workers: WorkersOption = None,
    address: Annotated[str | None, typer.Option(metavar="ADDR", help=cli_text.ADDRESS)] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help=cli_text.DEVICE)] = "auto",
    dashboard: Annotated[bool, typer.Option("--dashboard", help=cli_text.DASHBOARD)] = False,
    wait: Annotated[bool, typer.Option("--wait", help=cli_text.WAIT)] = False,
    prune: Annotated[bool, typer.Option("--prune", help=cli_text.PRUNE)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done, as `plan` does.")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help=run_text.FOLLOW)] = True,
    run_id: Annotated[str | None, typer.Option(hidden=True, help=run_text.RUN_ID)] = None,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help=cli_text.WEBHOOK)] = None,
    log_format: LogFormatOption = "text",
    as_json: JsonOption = False,
) -> None:
    from ...pipeline.run.run_id import require_run_id
    from ..cluster.job_server import is_job_server
    from ..observe.webhook import webhook_of
    from .outcome import RunEnding, telling

    address = address or os.environ.get("RAY_ADDRESS")
    on_cluster = address is not None and is_job_server(address)
    with telling(RunEnding(manifest, catalog), as_json=as_json) as ending:
        ending.webhook = None if dry_run else webhook_of(webhook, on_cluster=on_cluster)
        run_spec = _load(spec)
        run_id = require_run_id(run_id) if run_id else None
        if dry_run:
            _print_plan(manifest, run_spec, catalog, _where(workers, device=device), prune=prune, as_json=as_json)
        elif on_cluster:
            from ..cluster.submit_job import ClusterRun, submit_to_cluster

            choices: dict[str, Any] = {"wait": wait, "prune": prune, "log_format": log_format}
            if run_id:
                choices["run_id"] = run_id
            run = ClusterRun(manifest, catalog, workers, device, **choices)
            ending.run_id = run.run_id
            raise typer.Exit(submit_to_cluster(address or "", run, run_spec, follow=follow, as_json=as_json))
        elif not follow:
            fix = "give the --address of its dashboard, or leave it out"
            raise _invalid("--no-follow is for a run on a cluster", fix)
        else:
            if address not in (None, "auto"):
                os.environ["RAY_ADDRESS"] = address  # which is what Ray joins when it is told `auto`
            where = _where(workers, device=device, join_cluster=address is not None, dashboard=dashboard)
            options: dict[str, Any] = {"wait": wait, "prune": prune, "run_id": run_id, "on_run": ending.begun}
            options["log_format"] = log_format
            finished = _submit_here(manifest, run_spec, catalog, where, **options)
            ending.finished(finished, _report_of(finished, catalog))
            if not as_json:
                _print_summary(finished, ending.report)
    raise typer.Exit(ending.exit_code)


@app.command(help=cli_text.STATUS)
def status(
    what: Annotated[str, typer.Argument(metavar="CATALOG|RUN", help=run_text.CATALOG_OR_RUN)],
    catalog: run_commands.CatalogOption = None,
    address: run_commands.AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.run.status import catalog_status

    if run_commands.names_a_run(what, catalog, address):
        run_commands.show_run(what, catalog, address, as_json=as_json)
        return
    found = catalog_status(CatalogStore(what))
    print(found.to_json() if as_json else "\n".join(cli_text.status_lines(found)))


@app.command(help=cli_text.REPORT)
def report(
    catalog: CatalogArgument,
    manifest: Annotated[str | None, typer.Option(metavar="MANIFEST", help=cli_text.REPORT_MANIFEST)] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the page.")] = Path("report.html"),
    limit: Annotated[int, typer.Option(min=1, help="Show this many concepts, lowest scores first.")] = 200,
) -> None:
    from ...pipeline.run.status import write_report

    shown = write_report(catalog, out, manifest_uri=manifest, limit=limit)
    print(f"wrote {out}: {shown} concept{'' if shown == 1 else 's'} in the catalog")


@app.command(help=cli_text.EXPORT)
def export(
    catalog: CatalogArgument,
    concept_ids: Annotated[list[str], typer.Argument(metavar="CONCEPT…", help="Ids of committed concepts.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where it goes, a folder a concept.")] = Path("export"),
) -> None:
    from ...pipeline.catalog.index import read_committed
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.export import export_concept

    committed = read_committed(store := CatalogStore(catalog))
    missing = [concept_id for concept_id in concept_ids if concept_id not in committed]
    if missing:
        raise _invalid(f"{catalog} holds no concept {', '.join(missing)}", "see `persres-batch status`")
    for concept_id in concept_ids:
        for path in export_concept(store, committed[concept_id], out):
            print(path)


@app.command(help=cli_text.BENCH)
def bench(
    model: Annotated[str, typer.Option(metavar="MODEL", help=cli_text.BENCH_MODEL)] = "spriteworld",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="What to measure.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help=cli_text.BENCH_THREADS)] = None,
    iterations: Annotated[int, typer.Option(min=2, help=cli_text.BENCH_ITERATIONS)] = 10,
    rounds: Annotated[int, typer.Option(min=1, help=cli_text.BENCH_ROUNDS)] = 3,
    max_pack: Annotated[int | None, typer.Option(min=1, max=1024, help=cli_text.BENCH_MAX_PACK)] = None,
    spec: Annotated[Path | None, typer.Option(metavar="RUN.YAML", help=cli_text.BENCH_SPEC)] = None,
    row: Annotated[list[str] | None, typer.Option(metavar="ROW", help=cli_text.BENCH_ROW)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help=cli_text.BENCH_JSON)] = None,
    profile: Annotated[Path | None, typer.Option(metavar="FILE", help=cli_text.BENCH_PROFILE)] = None,
) -> None:
    from ...pipeline.benchmark.bench import run_bench
    from ...pipeline.benchmark.bench_plan import load_bench_model, make_bench_plan
    from ...pipeline.benchmark.step_profile import profile_steps
    from .bench import bench_tables, measuring, quiet_libraries

    quiet_libraries()
    chosen = {"device": device, "threads": threads, "max_pack": max_pack, "iterations": iterations, "rounds": rounds}
    bench_plan = make_bench_plan(_load(spec) if spec else None, **chosen, rows=row or ())
    with measuring(Console(stderr=True)) as on_progress:
        base = load_bench_model(model, bench_plan.device)
        if profile is not None:
            profile.write_text(profile_steps(base, bench_plan), encoding="utf-8")
            return
        result = run_bench(base, bench_plan, on_progress)
    if json_file is not None:
        json_file.write_text(result.to_json() + "\n", encoding="utf-8")
    console = Console()
    for part in bench_tables(result):
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))


app.add_typer(catalog_commands.app)
app.add_typer(schedule_commands.app)
app.add_typer(model_commands.app)
app.add_typer(run_commands.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: run a command and exit with its code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of packages that nothing here needs
    try:
        app(args=None if arguments is None else list(arguments), prog_name="persres-batch")
    except PersresError as error:
        if os.environ.get("PERSRES_DEBUG"):
            raise
        if isinstance(error, ManifestInvalid):
            print(*map(cli_text.problem_line, error.problems), sep="\n", file=sys.stderr)
        print(f"persres-batch: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("PERSRES_DEBUG"):
            raise
        print(f"persres-batch: {type(error).__name__}: {error}", file=sys.stderr)
        print("for the traceback: persres-batch --debug COMMAND …", file=sys.stderr)
        sys.exit(FAILED)


def _load(spec: Path) -> RunSpec:
    from ...pipeline.spec.run_spec import RunSpec

    return RunSpec.load(spec)


def _where(workers: int | None, **choices: Any) -> WhereToRun:
    from ..cluster.placement import WhereToRun

    return WhereToRun(workers, **choices)


def _submit_here(manifest: str, spec: RunSpec, catalog: str, where: WhereToRun, **choices: Any) -> FinishedRun:
    from ..submit import submit_local

    return submit_local(manifest, spec, catalog, where=where, **choices)


def _report_of(finished: FinishedRun, catalog: str) -> str | None:
    """Where its report lies; after a run that made none, the last one that did."""
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.run.status import latest_report

    return finished.report or latest_report(CatalogStore(catalog))


def _print_summary(finished: FinishedRun, report: str | None) -> None:
    print("\n".join(cli_text.summary_lines(finished.summary, report, pruned=finished.pruned)))


def _print_plan(
    manifest: str, spec: RunSpec, catalog: str, where: WhereToRun, *, prune: bool = False, as_json: bool
) -> None:
    from ...pipeline.catalog.index import read_committed
    from ...pipeline.catalog.store import CatalogStore
    from ...pipeline.planning.cost import estimate_cost, workload_of
    from ...pipeline.planning.prepare import prepare_run
    from ...pipeline.planning.throughput import read_history
    from ..cluster.placement import workers_here
    from ..observe.display import counting
    from ..submit import shards_of

    committed = read_committed(store := CatalogStore(catalog))
    with counting(Console(stderr=True), "reading references") as on_digest:
        prepared = prepare_run(manifest, spec, committed, on_digest=on_digest)
    run_plan: RunPlan = prepared.plan(committed)
    workers = workers_here(where, spec) if run_plan.has_work else 1  # counting GPUs loads torch
    shards = shards_of(run_plan, spec, workers)
    cost = estimate_cost(
        workload_of(shards, spec, prepared.base.revision),
        read_history(store),
        spec.prices,
        workers,
        device=None if where.device == "auto" else where.device,
    )
    if as_json:
        print(cli_text.json_of(cli_text.plan_values(run_plan, shards, prune=prune, cost=cost)))
    else:
        print("\n".join(cli_text.plan_lines(run_plan, shards, prune=prune, cost=cost)))


def _invalid(message: str, fix: str) -> PersresError:
    from ...core.errors import InvalidInput

    return InvalidInput(message, fix=fix)


if __name__ == "__main__":
    main()
