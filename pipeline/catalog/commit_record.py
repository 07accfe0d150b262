"""Commit records: their JSON, and which of several records holds a concept's current state. Pure functions.

An attempt at a shard writes its record last, and readers trust only records: a data file without one was left by a lost
attempt. If several records hold a concept (of a later run, or of two attempts at a shard), `supersedes` makes the same
choice in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...core.errors import ConceptFailure, StoreError
from .layout import AttemptPaths
from .sealed_json import TruncatedJson, seal, unseal

RECORD_VERSION = 2

ShardKind = Literal["train", "render"]


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Two digests, 32 hexadecimal digits each.

    Attributes:
        training: equal only for equal residuals.
        rendering: equal only for equal renderings and scores.
        request: as `CommittedConcept.request_digest`; it says nothing about what a result is, and is not compared.
    """

    training: str
    rendering: str
    request: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """Device time of shards that ran on one kind of device with the same settings.

    Attributes:
        device: such as "NVIDIA H100 80GB HBM3", or "cpu, 1 thread".
        training: digest of the settings that affect the time of a pack step.
        rendering: digest of the settings that affect the time of a batch.
        concepts: number of concepts trained, in `iterations` altogether.
        pack_steps: optimizer steps of whole packs of `pack_size`.
        images: number of images rendered and scored, in `batches`.
        train_seconds, render_seconds: the device's seconds.
    """

    device: str
    training: str
    rendering: str
    pack_size: int
    shards: int = 1
    concepts: int = 0
    iterations: int = 0
    pack_steps: int = 0
    train_seconds: float = 0.0
    images: int = 0
    batches: int = 0
    render_seconds: float = 0.0

    @property
    def device_seconds(self) -> float:
        return self.train_seconds + self.render_seconds

    @classmethod
    def from_dict(cls, raw: Any) -> Measured:
        """The inverse of `asdict`; ignores fields that a later version may have added.

        Raises:
            TypeError: a field is missing, or `raw` is no mapping.
        """
        return _from_known_fields(cls, raw)


@dataclass(frozen=True, slots=True)
class VariantScores:
    """Mean scores of a concept's renderings of one variant; None if they were not scored.

    `passed` is the number of renderings that reach the gate; None without a gate.
    """

    images: int
    prompt_score: float | None = None
    identity_score: float | None = None
    passed: int | None = None


@dataclass(frozen=True, slots=True)
class CommittedConcept:
    """A concept's committed state: its fingerprints and scores, and where its rows are.

    Attributes:
        residual_file, rendering_file: paths in the catalog; `rendering_file` is None for a concept without prompts.
        residual_row: row number in `residual_file`.
        rendering_rows: (first row, number of rows) in `rendering_file`.
        residual_digest: `blob_digest` of the residual; empty if an earlier version committed the concept.
        renderings_digest: `rendering_digest` of the images by row; empty as above, or without images.
        request_digest: of what was asked for: as the training fingerprint, but with the addresses of the references in
            place of their content. Empty: not known.
    """

    concept_id: str
    macro_class: str
    training_fingerprint: str
    rendering_fingerprint: str
    residual_file: str
    residual_row: int
    rendering_file: str | None = None
    rendering_rows: tuple[int, int] = (0, 0)
    scores: Mapping[str, VariantScores] = field(default_factory=dict)
    residual_digest: str = ""
    renderings_digest: str = ""
    request_digest: str = ""


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """The commit record of one attempt at a shard.

    Attributes:
        files: paths of its data files, by kind.
        seconds: time by phase.
        bytes_written: size of its data files.
        measured: None if an earlier version committed the attempt.
        lease_generation: of the run's lease: the record may be refused because of a later one (see `index_version`).
        index_version: number of the version of the index that was in force when the record was written.
    """

    run_id: str
    shard_id: str
    attempt: str
    kind: ShardKind
    files: Mapping[str, str]
    concepts: tuple[CommittedConcept, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    version: int = RECORD_VERSION
    bytes_written: int = 0
    measured: Measured | None = None
    lease_generation: int = 0
    index_version: int = 0

    @property
    def paths(self) -> AttemptPaths:
        """The paths of the attempt's objects."""
        return AttemptPaths(self.run_id, self.shard_id, self.attempt)

    def to_json(self) -> bytes:
        """The record as stored: one indented JSON object with sorted keys and a digest of its content."""
        return seal(asdict(self))

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> ShardCommit:
        """Parse a record, ignoring unknown fields, which a later minor version may add.

        Args:
            path: the record's name in errors.

        Raises:
            TornRecord: the record was cut off while it was written.
            StoreError: the record is damaged, or of a version that this code cannot read.
        """
        try:
            raw = unseal(text, sealed_since=2)
        except TruncatedJson as error:
            raise _torn_record(path) from error
        except ValueError as error:
            raise damaged_record(path, str(error)) from error
        version = raw["version"]
        if version > RECORD_VERSION:
            raise StoreError(
                f"commit record {path} has version {version}; this persres-batch reads up to {RECORD_VERSION}",
                fix="use the persres-batch that wrote this catalog, or a newer one",
            )
        try:
            concepts = tuple(_parse_concept(item) for item in raw["concepts"])
            failures = tuple(_from_known_fields(ConceptFailure, item) for item in raw["failures"])
            measured = Measured.from_dict(raw["measured"]) if raw.get("measured") else None
            return _from_known_fields(cls, {**raw, "concepts": concepts, "failures": failures, "measured": measured})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged_record(path, f"{type(error).__name__}: {error}") from error


class TornRecord(StoreError):
    """A record that ends too early: cut off while it was written, so that it commits nothing, or damaged since."""


def blob_digest(blob: bytes) -> str:
    """The first 32 hexadecimal digits of a residual's SHA-256."""
    return hashlib.sha256(blob).hexdigest()[:32]


def rendering_digest(images: Iterable[bytes]) -> str:
    """One digest of a concept's images in the order of their rows, 32 hexadecimal digits; empty without images."""
    digests = [hashlib.sha256(image).digest() for image in images]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32] if digests else ""


def supersedes(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Whether a concept's commit `one` takes precedence over `other`; each is a (run id, attempt, shard id).

    A later run takes precedence over an earlier one (run ids sort by time). Within a run the smallest (attempt, shard
    id) does: attempts at the same work have the same results, so the choice only has to be the same everywhere. The
    order is total, so commits can be reduced in any grouping, as compaction does.
    """
    return one[0] > other[0] or (one[0] == other[0] and one[1:] < other[1:])


def _parse_concept(raw: Mapping[str, Any]) -> CommittedConcept:
    first, count = raw["rendering_rows"]
    scores = {variant: _from_known_fields(VariantScores, item) for variant, item in raw["scores"].items()}
    return _from_known_fields(CommittedConcept, {**raw, "rendering_rows": (first, count), "scores": scores})


def _from_known_fields(kind: Any, raw: Mapping[str, Any]) -> Any:
    return kind(**{name: raw[name] for name in kind.__dataclass_fields__ if name in raw})


def _torn_record(path: str) -> TornRecord:
    return TornRecord(
        f"commit record {path} was cut off while it was written, or since",
        fix="restore it from a copy, or rebuild the index from the data files: `persres-batch repair`",
    )


def damaged_record(path: str, reason: str) -> StoreError:
    """The error for a record whose content is not the one that was written."""
    return StoreError(
        f"commit record {path} is damaged ({reason})",
        fix="restore it from a copy, or rebuild the index from the data files: `persres-batch repair`",
    )
