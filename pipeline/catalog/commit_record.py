"""What a commit record says, and which record a reader believes. Pure: values in, values out.

A record is the last object a shard's attempt writes, and the only thing a reader trusts: a data file without a record
is the debris of an attempt that died. Several records may speak of one concept (a later run, or two attempts of
one shard); `newest_per_concept` names the winner, the same one in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...core.errors import ConceptFailure, StoreError

RECORD_VERSION = 1

_END = b"\n}"  # only the last brace of an indented record stands at the beginning of a line

ShardKind = Literal["train", "render"]


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Two digests, 32 hexadecimal digits each.

    Attributes:
        training: equal only for equal residuals.
        rendering: equal only for equal renderings and scores.
    """

    training: str
    rendering: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What some shards took on one kind of device at one pace. Seconds are the device's.

    Attributes:
        device: such as "NVIDIA H100 80GB HBM3", or "cpu, 1 thread".
        concepts: those that were trained; `iterations` is the sum of theirs.
        pack_steps: optimizer steps of whole packs of `pack_size` that this took.
        images: those that were rendered and scored, in `batches`.
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
    def from_values(cls, raw: Any) -> Measured:
        """From what `asdict` made of it; what a later version may have added is ignored.

        Raises:
            TypeError: something is missing.
        """
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__ if name in raw})


@dataclass(frozen=True, slots=True)
class VariantScores:
    """Means over a concept's renderings of one variant; None where nothing was scored.

    `passed` counts the renderings that the gate let through, None where there was no gate.
    """

    images: int
    prompt_score: float | None = None
    identity_score: float | None = None
    passed: int | None = None


@dataclass(frozen=True, slots=True)
class CommittedConcept:
    """A concept as the catalog holds it: done with which fingerprints, and where its rows lie.

    Files are paths inside the catalog. `residual_row` is a row number in `residual_file`; `rendering_rows` is
    (first row, number of rows) in `rendering_file`, which is None when the concept had no prompts. `residual_digest` is
    the `blob_digest` of the residual, `renderings_digest` the `rendering_digest` of the images in the order of their
    rows; empty where an earlier version committed the concept, or where there are no images.
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


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """One attempt at one shard, committed: what it holds, under which fingerprints.

    `bytes_written` is the size of its data files. `measured` is what the device took for how much; None where an
    earlier version committed.
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

    def to_json(self) -> bytes:
        """The record as it is stored: indented JSON, keys sorted, one object."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, *, path: str) -> ShardCommit:
        """Read a record; `path` is named in errors. Unknown fields are ignored: a later minor version may add some.

        Raises:
            TornRecord: it was cut off while it was written.
            StoreError: the record is damaged, or of a version this code cannot read.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise _damaged(path, error) if text.rstrip().endswith(_END) else _torn(path) from error
        try:
            version = int(raw["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if version > RECORD_VERSION:
            raise StoreError(
                f"commit record {path} has version {version}; this persres-batch reads up to {RECORD_VERSION}",
                fix="use the persres-batch that wrote this catalog, or a newer one",
            )
        try:
            concepts = tuple(_concept(item) for item in raw["concepts"])
            failures = tuple(_known(ConceptFailure, item) for item in raw["failures"])
            measured = Measured.from_values(raw["measured"]) if raw.get("measured") else None
            return _known(cls, {**raw, "concepts": concepts, "failures": failures, "measured": measured})
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error


class TornRecord(StoreError):
    """A record that was cut off while it was written, so that it never was one: nothing was committed by it."""


def blob_digest(blob: bytes) -> str:
    """What a residual's bytes are told apart by: the first 32 hex digits of their sha256."""
    return hashlib.sha256(blob).hexdigest()[:32]


def rendering_digest(images: Iterable[bytes]) -> str:
    """The same for a concept's images together, in the order of their rows; empty where there are none."""
    digests = [hashlib.sha256(image).digest() for image in images]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32] if digests else ""


def supersedes(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Whether of two commits of a concept, each a (run id, attempt, shard id), the first is the one that counts.

    A later run wins over an earlier one (run ids sort by time). Within a run the smallest (attempt, shard id) wins:
    attempts of the same work hold the same results, so this only has to be the same choice everywhere. It is a total
    order, so the winner of many is the winner of the winners of any parts: compaction may fold them piece by piece.
    """
    return one[0] > other[0] or (one[0] == other[0] and one[1:] < other[1:])


def newest_per_concept(records: Iterable[ShardCommit]) -> dict[str, CommittedConcept]:
    """The one committed state of every concept, sorted by concept id, whatever the order of `records`.

    By `supersedes`, in the most obvious way; `CommittedConcepts` makes the same choice among millions.
    """
    winners: dict[str, CommittedConcept] = {}
    by_attempt = sorted(records, key=lambda record: (record.attempt, record.shard_id))
    for record in sorted(by_attempt, key=lambda record: record.run_id, reverse=True):
        for concept in record.concepts:
            winners.setdefault(concept.concept_id, concept)
    return dict(sorted(winners.items()))


def _concept(raw: Mapping[str, Any]) -> CommittedConcept:
    first, count = raw["rendering_rows"]
    scores = {variant: _known(VariantScores, item) for variant, item in raw["scores"].items()}
    return _known(CommittedConcept, {**raw, "rendering_rows": (first, count), "scores": scores})


def _known(kind: Any, raw: Mapping[str, Any]) -> Any:
    return kind(**{name: raw[name] for name in kind.__dataclass_fields__ if name in raw})


def _torn(path: str) -> TornRecord:
    return TornRecord(f"commit record {path} was cut off while it was written", fix=f"delete {path}; it says nothing")


def _damaged(path: str, error: Exception) -> StoreError:
    return StoreError(
        f"commit record {path} is damaged ({type(error).__name__}: {error})",
        fix=f"delete {path}; the next submit does its concepts again",
    )
