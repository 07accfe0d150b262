"""Every text the commands print: their help, and lines about plans, problems, summaries and catalogs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..format import cost_words, duration, estimate_lines
from . import run_text

if TYPE_CHECKING:
    from ...core.errors import ConceptFailure, Problem
    from ...pipeline.planning.cost import CostEstimate, RunCost
    from ...pipeline.planning.plan import RunPlan, Shard
    from ...pipeline.planning.validation import ValidationReport
    from ...pipeline.run.status import CatalogStatus
    from ...pipeline.run.summary import RunSummary

FAILURES_SHOWN = 10
SHARDS_SHOWN = 20
REMOVED_SHOWN = 20

APP = """Personalize a text-to-image model for a whole catalog of concepts, and render them.

A manifest goes in (concepts, reference images, prompts), a catalog of residuals and renderings comes out.
Submitting again does only what changed."""

EXIT_CODES = (
    "Exit codes: 0 done, 2 invalid input, 3 finished with failed concepts, 4 catalog held by another run, "
    "130 stopped by Ctrl-C, 143 by a termination signal, 1 anything else."
)

DEMO = """Run everything once on a small drawn world that comes with the package: no download, no GPU, a few minutes.

Example: [bold]persres-batch demo --out persres-demo[/bold]"""

INIT = """Write a run spec with every setting, its default and what it does.

Example: [bold]persres-batch init run.yaml[/bold]"""

VALIDATE = """Check a manifest in one pass and name the row, column, value and fix of everything that is wrong with it.

Opens every reference image, as a run would. Exits with 2 if there is a problem.

Example: [bold]persres-batch validate mugs.parquet --spec run.yaml[/bold]"""

PLAN = """Show what submitting would do: how many concepts it would train, only render again, and leave as they are.

And what that would cost in device hours, time and (with `prices` in the run spec) money, by what earlier runs of the
catalog took.

Example: [bold]persres-batch plan mugs.parquet --spec run.yaml --catalog s3://bucket/mugs[/bold]"""

SUBMIT = """Bring a catalog up to date with a manifest: train and render whatever is new or changed.

Concepts that cannot be done are listed with a reason, and the others are finished (exit code 3). After a crash or
Ctrl-C, submit again: what is committed is not done twice. The first Ctrl-C lets what is under way be committed, the
second ends it at once.

Example: [bold]persres-batch submit mugs.parquet --spec run.yaml --catalog s3://bucket/mugs[/bold]

On a cluster: [bold]persres-batch submit s3://bucket/mugs.parquet --spec run.yaml --catalog s3://bucket/mugs --address http://127.0.0.1:8265[/bold]"""

STATUS = """Show what a catalog holds, what the latest run has done, failed and left, and which run holds it now.

Or how one run goes: waiting, under way, ended, stopped, failed or died. Its cluster may be gone: the catalog knows.

Example: [bold]persres-batch status s3://bucket/mugs[/bold] or
[bold]persres-batch status 20261122T190501Z-3fa9c1 --address http://127.0.0.1:8265[/bold]"""

REPORT = """Write one self-contained HTML page with a catalog's references, renderings and scores.

Example: [bold]persres-batch report s3://bucket/mugs --manifest mugs.parquet --out mugs.html[/bold]"""

EXPORT = """Write committed residuals as files for other programs: diffusers, ComfyUI and A1111; and V*'s embedding.

They apply a residual everywhere in a picture; LAG needs this package.

Example: [bold]persres-batch export s3://bucket/mugs mug-1 mug-2 --out loras[/bold]"""

BENCH = """Measure on this machine how fast training and rendering are, beside diffusers' own ways of doing both.

Training: `peer` and `peer_cached` (diffusers' DreamBooth-LoRA loop, also with its caching), `alone`, `packed_2`,
`packed_4`, … (ours, that many concepts together). Rendering: `peer_render` (diffusers' pipeline, a LoRA at a time),
`render_base` (no residual), `render`, `render_lag`.

sd1 and sd2 are Stable Diffusion's published shapes with random weights: nothing is downloaded.

Example: [bold]persres-batch bench --model sd1 --device cuda --json sd1.json[/bold]"""

BENCH_MODEL = "spriteworld, sd1, sd2, sdxl, or any base model: a folder, a Hub id or a URI."
BENCH_THREADS = "CPU threads. Default: all cores that this process may use."
BENCH_ITERATIONS = "Training steps really done; seconds are scaled to the settings' iterations."
BENCH_ROUNDS = "Measure every row this often, in turn, and keep the best."
BENCH_MAX_PACK = "The most concepts trained together. Default: on a GPU until memory ends, else 16."
BENCH_SPEC = "Take the training and sampling settings of this run spec. V* stays frozen. Default: the defaults."
BENCH_ROW = "Measure only this row, beside the peer's. May be given several times."
BENCH_JSON = "Write the rows as JSON to this file."
BENCH_PROFILE = "Write torch's profile of one packed training step and of rendering to this file, and measure no rows."

MANIFEST = "The manifest: a path or URI of a .parquet or .jsonl file."
SPEC = "The run spec; `persres-batch init` writes one."
CATALOG = "Where residuals and renderings are kept: a folder, or an s3://, gs:// or az:// URI."
WORKERS = (
    "Workers at once. Default: the spec's; else one for every GPU, or up to two on CPU cores, "
    "and more on a cluster as nodes join it or its autoscaler may start them."
)
ADDRESS = (
    "A Ray cluster's dashboard, such as http://127.0.0.1:8265, to run there as a job; anything else, such as `auto`, "
    "is a cluster that this machine is part of. Default: RAY_ADDRESS, else a Ray of its own on this machine."
)
WEBHOOK = (
    "Tell this http(s):// address, as JSON, how the run ended. An address is a secret as a rule: set PERSRES_WEBHOOK "
    "instead, and for a run on a cluster set it there."
)
DEVICE = (
    "What workers run on. `auto`: GPUs where there are any, or a cluster of `ray up` may start some; "
    "say `cuda` for other clusters that start GPU nodes on demand, as on Kubernetes."
)
DASHBOARD = "Serve the embedded Ray's dashboard on http://127.0.0.1:8265; says where the token is that it asks for."
WAIT = "While another run holds the catalog, wait for it to end."
PRUNE = "At the end, forget the concepts that the manifest no longer lists, as `forget` does."
REPORT_MANIFEST = "Show the references of this manifest, and only its concepts."


def problem_line(problem: Problem) -> str:
    """One problem on one line: where, what, and what to do."""
    where = [
        *([f"row {problem.row}"] if problem.row is not None else []),
        *([f"concept {problem.concept_id}"] if problem.concept_id else []),
        *([f"column {problem.column}"] if problem.column else []),
    ]
    place = ", ".join(where) or "manifest"
    value = f" (value: {problem.value})" if problem.value else ""
    return f"{place}: {problem.reason}{value}. Fix: {problem.fix}"


def validation_lines(manifest: str, found: ValidationReport) -> Iterator[str]:
    """All problems and warnings, and at the end how many there are."""
    yield from map(problem_line, found.problems)
    yield from (f"warning: {warning}" for warning in found.warnings)
    if found.valid:
        yield f"{manifest}: {len(found.rows)} concepts, no problems"
    else:
        count = len(found.problems)
        yield f"{manifest}: {count} problem{'' if count == 1 else 's'}; {len(found.rows)} concepts without any"


def failure_line(failure: ConceptFailure) -> str:
    """One failed concept on one line."""
    fix = f". Fix: {failure.fix}" if failure.fix else ""
    return f"  failed: {failure.concept_id} ({failure.stage}): {failure.reason}{fix}"


def plan_lines(
    plan: RunPlan, shards: Sequence[Shard], *, prune: bool = False, cost: CostEstimate | None = None
) -> Iterator[str]:
    """A plan in words; `prune`: what the manifest no longer lists would be removed."""
    yield f"{plan.rows} rows: {len(plan.train)} to train and render, {len(plan.render_only)} to render only, " + (
        f"{len(plan.current)} current, {len(plan.failures)} failed"
    )
    if plan.removed:
        fate = "they are removed at the end:" if prune else "they are kept (`submit --prune` removes them):"
        yield f"{len(plan.removed)} in the catalog that the manifest no longer lists; {fate}"
        yield from _shortened([f"  {concept_id}" for concept_id in plan.removed], REMOVED_SHOWN)
    yield from _shortened([failure_line(failure) for failure in plan.failures], FAILURES_SHOWN)
    if not shards:
        yield "nothing else to do" if prune and plan.removed else "nothing to do"
    else:
        yield f"{len(shards)} shard{'' if len(shards) == 1 else 's'}:"
        yield from _shortened([f"  {shard.shard_id}: {len(shard.concepts)} concepts" for shard in shards], SHARDS_SHOWN)
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


def summary_lines(summary: RunSummary, report: str | None, *, pruned: int = 0) -> Iterator[str]:
    """How a run ended, in words: the counts, the failures, what was forgotten, the report."""
    yield from _shortened([failure_line(failure) for failure in summary.failed], FAILURES_SHOWN)
    if not summary.committed and not summary.failed:
        what = "train or render" if pruned else "do"
        yield f"nothing to {what}: all {summary.rows} concepts are current ({summary.wall_seconds:.1f} s)"
    else:
        yield (
            f"{summary.rows} rows: {summary.committed} done, {len(summary.failed)} failed, {summary.current} current "
            f"({duration(summary.wall_seconds)}, {summary.workers} worker{'' if summary.workers == 1 else 's'}"
            f"{_busy(summary.device_busy_share)}{_cost(summary.cost)})"
        )
    if pruned:
        yield f"{pruned} that the manifest no longer lists {'is' if pruned == 1 else 'are'} forgotten"
    if report:
        yield f"report: {report}"


def status_lines(status: CatalogStatus) -> Iterator[str]:
    """A catalog at a glance, in words."""
    yield f"{status.uri}: {status.concepts} concepts committed, {status.runs} run{'' if status.runs == 1 else 's'}"
    latest = status.latest
    if latest is not None:
        counts = f"{latest.done} done, {len(latest.failed)} failed, {latest.left} left of {latest.planned}"
        state = run_text.state_words(latest.state)
        yield f"latest run {latest.run_id}: {counts} ({state}{_busy(latest.device_busy_share)}{_cost(latest.cost)})"
        yield from _shortened([failure_line(failure) for failure in latest.failed], FAILURES_SHOWN)
        if latest.report:
            yield f"report: {latest.report}"
    if status.holder is None:
        yield "held by nobody"
    else:
        since = datetime.fromtimestamp(status.holder.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        expired = ", who has not been heard of since; the lease has expired" if status.holder.expired else ""
        yield f"held by run {status.holder.run_id} of {status.holder.owner} since {since}{expired}"


def _busy(share: float | None) -> str:
    return "" if share is None else f", device busy {share:.0%}"


def _cost(cost: RunCost | None) -> str:
    return "" if cost is None else f", {cost_words(cost)}"


def json_of(value: Any) -> str:
    """Indented JSON; dataclasses as objects."""

    def plain(item: Any) -> Any:
        return asdict(item) if is_dataclass(item) and not isinstance(item, type) else str(item)

    return json.dumps(value, indent=1, sort_keys=True, default=plain)


def _shortened(lines: Sequence[str], shown: int) -> Iterator[str]:
    yield from lines[:shown]
    if len(lines) > shown:
        yield f"  … and {len(lines) - shown} more"
