"""Commit one attempt at a shard, all of it or nothing.

Data first, record last: write the attempt's Parquet files under names of its own, check that the store holds as many
bytes as were sent, and then write one small record that names the files. A crash before the record leaves files that no
reader opens. Attempts and runs never write to the same name; `commit_record.supersedes` decides between their records.
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
from ..catalog.fence import refused, require_counted
from ..catalog.index_version import newest_version
from ..catalog.layout import AttemptPaths
from ..catalog.parquet_file import footer_digest
from ..catalog.schemas import RenderingRow, ResidualRow, rendering_table, residual_table
from ..catalog.store import CatalogStore
from ..planning.plan import PlannedConcept, Shard

# One residual per row group, so that one concept is read with two range requests: the footer and the row group.
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
    lease_generation: int = 0,
) -> ShardCommit:
    """Commit an attempt: write its data files, then the record that names them.

    Args:
        attempt: a name that no other attempt at this shard in this run has.
        residuals: one row per trained concept. In a render shard the record refers to the committed residuals, except
            for concepts that were trained again, because theirs were damaged.
        renderings: all images of the concepts that did not fail, in any order.
        failures: one per failed concept.
        seconds: by phase.
        measured: the device's speed.
        lease_generation: of the run's lease.

    Returns:
        The record as written.

    Raises:
        CatalogHeld: the run has lost its lease, and its commits are refused (see `index_version`). Nothing is left.
        StoreError: an object could not be written in full, or the residual of an earlier run was deleted. Either the
            catalog has not changed, or the attempt is committed and only the response was lost. In both cases, retry
            under another attempt.
        ValueError: the rows do not cover the shard's concepts exactly once.
    """
    _check_cover(shard, residuals, renderings, failures)
    paths = AttemptPaths(run_id, shard.shard_id, attempt)
    failed = {failure.concept_id for failure in failures}
    succeeded = [concept for concept in shard.concepts if concept.concept_id not in failed]
    images = _images_by_concept(succeeded, renderings)
    version = newest_version(store)
    if lease_generation < version.fence:
        raise refused(store, run_id)
    files: dict[str, str] = {}
    data: dict[str, bytes] = {}  # by path
    if residuals:
        content = data_file_bytes(residual_table(residuals), RESIDUALS_PER_ROW_GROUP)
        files["residuals"] = paths.residuals(footer_digest(content))
        data[files["residuals"]] = content
    if renderings:
        ordered = [image for own in images.values() for image in own]
        content = data_file_bytes(rendering_table(ordered), RENDERINGS_PER_ROW_GROUP)
        files["renderings"] = paths.renderings(footer_digest(content))
        data[files["renderings"]] = content
    concepts = _committed_concepts(succeeded, residuals, images, files)
    record = ShardCommit(
        run_id,
        shard.shard_id,
        attempt,
        shard.kind,
        files,
        tuple(concepts),
        tuple(failures),
        seconds,
        bytes_written=sum(map(len, data.values())),
        measured=measured,
        lease_generation=lease_generation,
        index_version=version.number,
    )
    for path, content in data.items():
        _put(store, path, content)
    try:
        _require_residuals(store, concepts, files)
    except StoreError:  # its concepts may have been forgotten, and these files have rows of them
        for path in data:
            store.delete(path)
        raise
    put_record(store, record)
    return record


def put_record(store: CatalogStore, record: ShardCommit) -> None:
    """Write a commit record, whose data files are written.

    Raises:
        CatalogHeld: the run has lost its lease, and its commits are refused. Neither record nor data files are left.
        StoreError: it could not be written in full.
    """
    _put(store, record.paths.record, record.to_json())
    require_counted(store, record)


def _check_cover(
    shard: Shard,
    residuals: Sequence[ResidualRow],
    renderings: Sequence[RenderingRow],
    failures: Sequence[ConceptFailure],
) -> None:
    """Check that each concept of the shard either failed once or has all its results once; raises ValueError."""
    failed = [failure.concept_id for failure in failures]
    succeeded = [concept for concept in shard.concepts if concept.concept_id not in failed]
    rendered = {row.concept_id for row in renderings}
    trained = [row.concept_id for row in residuals]
    expected = {
        "failures": (failed, set(failed) & set(shard.concept_ids)),
        "residuals": (trained, _ids(one for one in succeeded if shard.kind == "train" or one.concept_id in trained)),
        "renderings": (list(rendered), _ids(one for one in succeeded if one.row.prompts)),
    }
    for what, (given, wanted) in expected.items():
        if sorted(given) != sorted(wanted):
            raise ValueError(f"shard {shard.shard_id}: {what} of {sorted(given)}, expected of {sorted(wanted)}")


def _images_by_concept(
    concepts: Iterable[PlannedConcept], renderings: Iterable[RenderingRow]
) -> dict[str, list[RenderingRow]]:
    """Group images by concept, in the order of `concepts`, and sort a concept's images by prompt, variant and index."""
    images: dict[str, list[RenderingRow]] = {concept.concept_id: [] for concept in concepts}
    for image in sorted(renderings, key=lambda row: (row.prompt_index, row.variant, row.image_index)):
        images[image.concept_id].append(image)
    return images


def _put(store: CatalogStore, path: str, data: bytes) -> None:
    """Write an object, and check that the store has not truncated it."""
    store.write(path, data)
    held = store.size(path)
    if held != len(data):
        raise StoreError(
            f"{store.url(path)} holds {held} of the {len(data)} bytes that were sent",
            fix="submit again; if it happens again, a proxy or the network on the way to the store drops bytes",
        )


def _require_residuals(store: CatalogStore, concepts: Iterable[CommittedConcept], files: Mapping[str, str]) -> None:
    """Check that the residuals of earlier runs, to which the record will refer, were not deleted; raises StoreError."""
    for path in sorted({one.residual_file for one in concepts} - set(files.values())):
        if store.size(path) is None:
            raise StoreError(f"{store.url(path)} is gone: its concepts were forgotten or moved", fix="submit again")


def _ids(concepts: Iterable[PlannedConcept]) -> set[str]:
    return {concept.concept_id for concept in concepts}


def _committed_concepts(
    concepts: Iterable[PlannedConcept],
    residuals: Iterable[ResidualRow],
    images: Mapping[str, Sequence[RenderingRow]],
    files: Mapping[str, str],
) -> list[CommittedConcept]:
    """Return the record's entries: where in the data files each concept's residual and images are."""
    trained = {row.concept_id: (number, blob_digest(row.residual)) for number, row in enumerate(residuals)}
    committed, first_image = [], 0
    for planned in concepts:
        own = images[planned.concept_id]
        committed.append(_committed_concept(planned, trained.get(planned.concept_id), own, first_image, files))
        first_image += len(own)
    return committed


def _committed_concept(
    planned: PlannedConcept,
    trained: tuple[int, str] | None,
    images: Sequence[RenderingRow],
    first_image: int,
    files: Mapping[str, str],
) -> CommittedConcept:
    """Return the record's entry of one concept. `trained` is the row and the digest of its new residual, if any."""
    if trained is not None:
        residual_file, (residual_row, residual_digest) = files["residuals"], trained
    elif (held := planned.committed) is not None:  # a render shard: the residual stays where it is
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
        rendering_rows=(first_image, len(images)) if images else (0, 0),
        scores=mean_scores(images),
        residual_digest=residual_digest,
        renderings_digest=rendering_digest(row.image for row in images),
        request_digest=planned.fingerprints.request,
    )


def mean_scores(images: Sequence[RenderingRow]) -> dict[str, VariantScores]:
    """The mean scores of a concept's renderings, by variant."""
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
