"""Every text that the upkeep commands print: gc, forget and verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...pipeline.maintenance.forget import Forgotten
    from ...pipeline.maintenance.gc import Garbage
    from ...pipeline.maintenance.traces import Traces
    from ...pipeline.maintenance.verify import Finding, Verification

GC = """List what a catalog holds and nobody needs: files of attempts that died or were replaced, torn records, debris.

Nothing is removed without [bold]--delete[/bold], and nothing ever that is younger than [bold]--older-than[/bold]: a
worker may still be about to commit it. Exits with 4 if a run holds the catalog and something is to be removed.

Example: [bold]persres-batch gc s3://bucket/mugs --delete[/bold]"""
GC_DELETE = "Remove it. Without this, gc only lists it."
GC_OLDER_THAN = "Leave alone what is younger: a number with s, m, h or d."

FORGET = """Remove every trace of concepts from a catalog: rows, images, index, and the runs' documents that name them.

All other concepts stay as they are, readable at every moment. If it is interrupted, run it again. Copies that the
store itself keeps (versions of objects, backups) and exported files are out of its reach, and a manifest that still
lists a concept brings it back.

Example: [bold]persres-batch forget s3://bucket/faces ana-1 ben-2[/bold]"""
FORGET_CONCEPTS = "Ids of concepts, whether committed, failed or left by a run that died."
FORGET_DRY_RUN = "Only say what would be rewritten and removed."

VERIFY = """Read a whole catalog back: digests, shapes, numbers, images, and whether data and records agree.

Exits with 0 if everything is as it was committed, and with 1 otherwise, naming concept, file, fault and fix.

Example: [bold]persres-batch verify s3://bucket/mugs[/bold]"""

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size(count: int) -> str:
    """A number of bytes for people: "512 bytes", "1.5 GB"."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} bytes" if unit == 0 else f"{amount:.3g} {_UNITS[unit]}"


def several(count: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def garbage_lines(uri: str, found: Garbage, *, deleted: bool) -> Iterator[str]:
    """Every object on a line, and the sum."""
    for one in found.objects:
        yield f"{one.path}  {size(one.size)}  ({one.why})"
    count = several(len(found.objects), "object")
    if deleted:
        yield f"{uri}: removed {count}, {size(found.size)}"
    elif found.objects:
        yield f"{uri}: {count}, {size(found.size)}, that nobody needs; --delete removes them"
    else:
        yield f"{uri}: no garbage"
    if found.too_young:
        yield f"{several(found.too_young, 'more object')} like these left alone for being too young"


def garbage_values(found: Garbage, *, deleted: bool) -> dict[str, Any]:
    """The same for `--json`."""
    objects = [asdict(one) for one in found.objects]
    return {"found": objects, "removed": [one.path for one in found.objects] if deleted else [],
            "bytes": found.size, "too_young": found.too_young}  # fmt: skip


def traces_lines(uri: str, traces: Traces) -> Iterator[str]:
    """What forgetting would take."""
    yield from (f"  {path}: to be rewritten, for others lie in it too" for path in sorted(traces.shared))
    yield from (f"  {path}: to be removed" for path in sorted(traces.own))
    yield from (f"  {path}: to be removed, for it cannot be read" for path in sorted(traces.unreadable))
    yield from (f"  {path}: to be rewritten without them, or removed" for path in sorted(traces.documents))
    count = several(len(traces.concept_ids), "concept")
    yield f"{uri}: nothing is changed yet; without --dry-run, {count} would be forgotten"


def forgotten_lines(uri: str, forgotten: Forgotten) -> Iterator[str]:
    """What forgetting took, and what it cannot reach."""
    yield (
        f"{uri}: forgot {', '.join(forgotten.concept_ids)}: {several(forgotten.rewritten, 'data file')} rewritten, "
        f"{forgotten.removed} removed, {several(forgotten.documents, 'document')} of runs changed"
    )
    if "://" in uri:
        yield "a bucket with versioning still keeps the old objects as versions: remove those too"
    yield "a manifest that still lists a concept brings it back at the next submit: take it out there"


def finding_line(finding: Finding) -> str:
    """One fault on one line: where, what, and what to do."""
    where = f"concept {finding.concept_id}, " if finding.concept_id else ""
    return f"{where}{finding.file}: {finding.fault}. Fix: {finding.fix}"


def verification_lines(uri: str, found: Verification) -> Iterator[str]:
    """All findings, then the sum, then what is no fault but worth knowing."""
    yield from map(finding_line, found.findings)
    read = (
        f"{uri}: {several(found.concepts, 'concept')}, {several(found.files, 'file')}, "
        f"{several(found.images, 'rendering')}"
    )
    concepts = len({one.concept_id for one in found.findings})
    faults = f"{several(len(found.findings), 'fault')} in {several(concepts, 'concept')}"
    yield f"{read}: {'everything is as it was committed' if found.clean else faults}"
    if found.without_digest:
        yield f"{several(found.without_digest, 'concept')} committed before digests were kept: judged without one"
    if objects := found.garbage.objects:
        kinds = ", ".join(f"{count} {why}" for why, count in sorted(Counter(one.why for one in objects).items()))
        yield f"no fault, but nobody needs {several(len(objects), 'object')} ({kinds}): see `persres-batch gc`"


def verification_values(found: Verification) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "clean": found.clean,
        "concepts": found.concepts,
        "files": found.files,
        "renderings": found.images,
        "without_digest": found.without_digest,
        "findings": [asdict(one) for one in found.findings],
        "garbage": [asdict(one) for one in found.garbage.objects],
    }
