"""Make one attempt at a shard visible, all of it or none of it, and read back what is committed.

Data first, record last: the attempt writes its Parquet files under names nobody else uses, makes sure that the store
holds as many bytes as were sent, and then writes one small record that names them. A crash before the record leaves
files that no reader looks at; after it, everything is there. Two attempts, or two runs, never write to the same name,
and `commit_record.supersedes` decides between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ...core.errors import ConceptFailure, StoreError
from ..catalog.commit_record import (
    CommittedConcept,
    Measured,
    ShardCommit,
    VariantScores,
    blob_digest,
    rendering_digest,
)
from ..catalog.data_file import data_file_bytes
from ..catalog.schemas import RenderingRow, ResidualRow, rendering_table, residual_table
from ..catalog.store import CatalogStore
from ..planning.plan import PlannedConcept, Shard

# One residual is one row group, so reading one concept of a shard is two range reads: the footer and the row.
RESIDUALS_PER_ROW_GROUP = 1
RENDERINGS_PER_ROW_GROUP = 16


def commit_shard(
    store: CatalogStore,
    *,
    run_id: str,
    shard: Shard,
    attempt: str,
    residuals: Sequence[ResidualRow],
    renderings: Sequence[RenderingRow],
    failures: Sequence[ConceptFailure],
    seconds: Mapping[str, float],
    measured: Measured | None = None,
) -> ShardCommit:
    """Commit an attempt: its data files, then the record that makes them count.

    Args:
        attempt: another name for every try at this shard within this run, such as "2".
        residuals: one row for each concept that was trained; empty for a render shard, whose record carries over where
            the residuals lie.
        renderings: all images of the concepts that did not fail, in any order.
        failures: one for each concept of the shard without a result.
        seconds: time spent, by phase.
        measured: what the device took for how much.

    Returns:
        The record as written.

    Raises:
        StoreError: an object could not be written or was shortened, or an earlier run's residual is not there any more.
            The catalog is as it was before, or all of the attempt is committed and only the answer was lost: either
            way, try again under another attempt.
        ValueError: the rows do not cover the shard's concepts exactly once.
    """
    _check_cover(shard, residuals, renderings, failures)
    failed = {failure.concept_id for failure in failures}
    images_of: defaultdict[str, list[RenderingRow]] = defaultdict(list)
    for image in sorted(renderings, key=lambda row: (row.prompt_index, row.variant, row.image_index)):
        images_of[image.concept_id].append(image)
    succeeded = [concept for concept in shard.concepts if concept.concept_id not in failed]

    files: dict[str, str] = {}
    written = 0
    if residuals:
        files["residuals"] = store.residual_file(run_id, shard.shard_id, attempt)
        written += _put(store, files["residuals"], data_file_bytes(residual_table(residuals), RESIDUALS_PER_ROW_GROUP))
    if renderings:
        files["renderings"] = store.rendering_file(run_id, shard.shard_id, attempt)
        ordered = [image for concept in succeeded for image in images_of[concept.concept_id]]
        written += _put(store, files["renderings"], data_file_bytes(rendering_table(ordered), RENDERINGS_PER_ROW_GROUP))

    residual_of = {row.concept_id: (number, blob_digest(row.residual)) for number, row in enumerate(residuals)}
    concepts, first = [], 0
    for planned in succeeded:
        images = images_of[planned.concept_id]
        concepts.append(_committed(planned, residual_of.get(planned.concept_id), images, first, files))
        first += len(images)

    _require_residuals(store, concepts, files)
    record = ShardCommit(
        run_id,
        shard.shard_id,
        attempt,
        shard.kind,
        files,
        tuple(concepts),
        tuple(failures),
        seconds,
        bytes_written=written,
        measured=measured,
    )
    _put(store, store.commit_record(run_id, shard.shard_id, attempt), record.to_json())
    return record


def _check_cover(
    shard: Shard,
    residuals: Sequence[ResidualRow],
    renderings: Sequence[RenderingRow],
    failures: Sequence[ConceptFailure],
) -> None:
    """Raise ValueError unless each concept of the shard either failed once or has all its results once."""
    failed = [failure.concept_id for failure in failures]
    succeeded = [concept for concept in shard.concepts if concept.concept_id not in failed]
    rendered = {row.concept_id for row in renderings}
    expected = {
        "failures": (failed, set(failed) & set(shard.concept_ids)),
        "residuals": ([row.concept_id for row in residuals], _ids(succeeded) if shard.kind == "train" else set()),
        "renderings": (list(rendered), _ids(one for one in succeeded if one.row.prompts)),
    }
    for what, (given, wanted) in expected.items():
        if sorted(given) != sorted(wanted):
            raise ValueError(f"shard {shard.shard_id}: {what} of {sorted(given)}, expected of {sorted(wanted)}")


def _put(store: CatalogStore, path: str, data: bytes) -> int:
    """Write an object and make sure that the store did not cut it short and call it a success; returns its size."""
    store.write(path, data)
    held = store.size(path)
    if held != len(data):
        raise StoreError(
            f"{store.url(path)} holds {held} of the {len(data)} bytes that were sent",
            fix="submit again; if it stays so, what lies between here and the store drops bytes",
        )
    return len(data)


def _require_residuals(store: CatalogStore, concepts: Iterable[CommittedConcept], files: Mapping[str, str]) -> None:
    """Raise StoreError if a residual that an earlier run committed has been taken away while it was rendered from."""
    for path in sorted({one.residual_file for one in concepts} - set(files.values())):
        if store.size(path) is None:
            raise StoreError(f"{store.url(path)} is gone: its concepts were forgotten or moved", fix="submit again")


def _ids(concepts: Iterable[PlannedConcept]) -> set[str]:
    return {concept.concept_id for concept in concepts}


def _committed(
    planned: PlannedConcept,
    trained: tuple[int, str] | None,
    images: Sequence[RenderingRow],
    first: int,
    files: Mapping[str, str],
) -> CommittedConcept:
    """What the record says of one concept; `trained`: the row of its new residual and the digest of it."""
    if trained is not None:
        residual_file, (residual_row, residual_digest) = files["residuals"], trained
    elif (held := planned.committed) is not None:  # a render shard: the residual stays where an earlier record put it
        residual_file, residual_row, residual_digest = held.residual_file, held.residual_row, held.residual_digest
    else:
        raise ValueError(f"concept {planned.concept_id} is to be rendered only, but has no committed residual")
    return CommittedConcept(
        concept_id=planned.concept_id,
        macro_class=planned.row.macro_class,
        training_fingerprint=planned.fingerprints.training,
        rendering_fingerprint=planned.fingerprints.rendering,
        residual_file=residual_file,
        residual_row=residual_row,
        rendering_file=files["renderings"] if images else None,
        rendering_rows=(first, len(images)) if images else (0, 0),
        scores=_scores(images),
        residual_digest=residual_digest,
        renderings_digest=rendering_digest(row.image for row in images),
    )


def _scores(images: Sequence[RenderingRow]) -> dict[str, VariantScores]:
    by_variant: defaultdict[str, list[RenderingRow]] = defaultdict(list)
    for row in images:
        by_variant[row.variant].append(row)
    return {
        variant: VariantScores(
            images=len(rows),
            prompt_score=_mean([row.prompt_score for row in rows]),
            identity_score=_mean([row.identity_score for row in rows]),
            passed=None if any(row.passed is None for row in rows) else sum(bool(row.passed) for row in rows),
        )
        for variant, rows in sorted(by_variant.items())
    }


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
