"""All Arrow schemas, and the conversion of rows to and from tables.

DuckDB, Polars, pandas and Hugging Face `datasets` read the files: columns are plain, each with a description in its
field's metadata, and `datasets` shows renderings as images. It cannot read Arrow maps, so names with values are lists
of structs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from .commit_record import CommittedConcept, ShardCommit, VariantScores

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ResidualRow:
    """A trained residual: `residual` is a safetensors blob, `ranks` has the rank of each target layer.

    `reference_thumbnails` are WebP; None if an earlier version, which kept none, has committed the row.
    """

    concept_id: str
    macro_class: str
    training_fingerprint: str
    base_model: str
    base_model_revision: str
    identifier_token: str
    ranks: Mapping[str, int]
    residual: bytes
    losses: Sequence[float]
    final_loss: float
    iterations: int
    seconds: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    remedy: str | None = None
    reference_thumbnails: Sequence[bytes] | None = None


@dataclass(frozen=True, slots=True)
class RenderingRow:
    """One image of a concept with all its inputs; `image` is a PNG, scores are cosines, or None if not scored."""

    concept_id: str
    training_fingerprint: str
    rendering_fingerprint: str
    prompt_index: int
    image_index: int
    prompt_template: str
    prompt: str
    seed: int
    variant: str
    guidance_scale: float
    steps: int
    width: int
    height: int
    image: bytes
    image_path: str
    prompt_score: float | None = None
    identity_score: float | None = None
    passed: bool | None = None
    remedy: str | None = None


def _column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})


def _schema(columns: list[pa.Field], features: Mapping[str, Any] | None = None) -> pa.Schema:
    metadata = {"persres.schema_version": str(SCHEMA_VERSION)}
    if features:  # Hugging Face derives the features not named here from the Arrow types
        metadata["huggingface"] = json.dumps({"info": {"features": features}})
    return pa.schema(columns, metadata=metadata)


_RANKS = pa.list_(pa.struct([("layer", pa.string()), ("rank", pa.int32())]))
_PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
_IMAGES = pa.list_(pa.binary())
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCORES = pa.list_(
    pa.struct(
        [
            ("variant", pa.string()),
            ("images", pa.int32()),
            ("prompt_score", pa.float64()),
            ("identity_score", pa.float64()),
            ("passed", pa.int32()),
        ]
    )
)
_REPEATED = pa.dictionary(pa.int32(), pa.string())  # for texts that many rows share

MANIFEST = _schema([
    _column("concept_id", pa.string(), "unique name of the concept: letters, digits, '.', '_', '-', at most 128"),
    _column("macro_class", pa.string(), "the category noun, such as mug"),
    _column("reference_images", pa.list_(pa.string()), "URIs of images; relative ones start at the manifest's folder"),
    _column("prompts", pa.list_(pa.string()), "templates with {concept} in them; null: the run spec's prompt set"),
    _column("masks", pa.list_(pa.string()), "optional: a foreground mask for every reference image"),
    _column("seed", pa.int64(), "optional: the concept's own seed; null: the run's"),
    _column("metadata", pa.map_(pa.string(), pa.string()), "optional: passed through to the residual's row"),
])  # fmt: skip

RESIDUALS = _schema([
    _column("concept_id", pa.string(), "the manifest's concept"),
    _column("macro_class", pa.string(), "its category noun"),
    _column("training_fingerprint", pa.string(), "digest of everything that determines the residual"),
    _column("base_model", pa.string(), "the frozen base model, as the run spec names it"),
    _column("base_model_revision", pa.string(), "its commit or content digest"),
    _column("identifier_token", pa.string(), "the word that stands for V* in this concept's prompts"),
    _column("ranks", _RANKS, "rank of the residual of every target layer"),
    _column("residual", pa.binary(), "safetensors: A and B of every target layer, and V*'s embedding if trained"),
    _column("losses", pa.list_(pa.float32()), "training loss of every iteration"),
    _column("final_loss", pa.float64(), "mean loss at the end of training"),
    _column("iterations", pa.int32(), "optimizer steps"),
    _column("seconds", pa.float64(), "wall-clock seconds of training, the concept's share of its pack's"),
    _column("metadata", _PAIRS, "the manifest row's metadata"),
    _column("remedy", pa.string(), "what was changed for a second training, and why; null: the first one was sound"),
    _column("reference_thumbnails", _IMAGES, "the first reference images, small, as WebP; null: not kept"),
])  # fmt: skip

RENDERINGS = _schema(
    [
        _column("concept_id", pa.string(), "the manifest's concept"),
        _column("training_fingerprint", pa.string(), "digest of everything that determines the residual"),
        _column("rendering_fingerprint", pa.string(), "digest of everything that determines the renderings"),
        _column("prompt_index", pa.int32(), "place of the prompt in the concept's list, from 0"),
        _column("image_index", pa.int32(), "which image of this prompt, from 0"),
        _column("prompt_template", pa.string(), "the prompt as written, with {concept}"),
        _column("prompt", pa.string(), "the prompt as the model read it"),
        _column("seed", pa.int64(), "seed of the image's starting noise"),
        _column("variant", pa.string(), "base: no residual; residual: everywhere; lag: where the concept is"),
        _column("guidance_scale", pa.float64(), "classifier-free guidance; 1 is none"),
        _column("steps", pa.int32(), "denoising steps"),
        _column("width", pa.int32(), "pixels"),
        _column("height", pa.int32(), "pixels"),
        _column("image", _IMAGE, "the rendering, a PNG, and a name for its file"),
        _column("prompt_score", pa.float64(), "cosine between image and prompt; null: not scored"),
        _column("identity_score", pa.float64(), "mean cosine between image and references; null: not scored"),
        _column("passed", pa.bool_(), "whether the scores reach the gate; null: not scored or no gate"),
        _column("remedy", pa.string(), "what was changed for a second try, and why; null: the first one was sound"),
    ],
    features={"image": {"_type": "Image"}},
)

INDEX = _schema([
    _column("concept_id", pa.string(), "the manifest's concept"),
    _column("macro_class", _REPEATED, "its category noun"),
    _column("training_fingerprint", pa.string(), "digest of everything that determines the residual"),
    _column("rendering_fingerprint", pa.string(), "digest of everything that determines the renderings"),
    _column("residual_file", _REPEATED, "where in the catalog the residual's row is"),
    _column("residual_row", pa.int32(), "which row of that file, from 0"),
    _column("rendering_file", _REPEATED, "where the renderings are; null: the concept has no prompts"),
    _column("rendering_rows", pa.list_(pa.int32()), "the first of their rows in that file, and how many they are"),
    _column("scores", _SCORES, "means over the concept's renderings of each variant; null: not scored or no gate"),
    _column("run_id", _REPEATED, "the run that committed this"),
    _column("attempt", _REPEATED, "which of its attempts"),
    _column("shard_id", _REPEATED, "at which shard"),
    _column("residual_digest", pa.string(), "first 32 hex digits of the residual's sha256; empty: not known"),
    _column("renderings_digest", pa.string(), "the same of all images' sha256s in the order of rows; empty: not known"),
    _column("request_digest", pa.string(), "of what was asked for, with the references' addresses; empty: not known"),
])  # fmt: skip


def residual_table(rows: Iterable[ResidualRow]) -> pa.Table:
    """Convert rows to a table of schema `RESIDUALS`."""
    return pa.Table.from_pylist([_residual_record(row) for row in rows], schema=RESIDUALS)


def residual_rows(table: pa.Table) -> list[ResidualRow]:
    """Convert a table of schema `RESIDUALS` to rows."""
    rows = []
    for record in table.to_pylist():
        record["ranks"] = {entry["layer"]: entry["rank"] for entry in record["ranks"]}
        record["metadata"] = {entry["key"]: entry["value"] for entry in record["metadata"]}
        record["losses"] = tuple(record["losses"])
        if (thumbnails := record.get("reference_thumbnails")) is not None:
            record["reference_thumbnails"] = tuple(thumbnails)
        rows.append(ResidualRow(**record))
    return rows


def rendering_table(rows: Iterable[RenderingRow]) -> pa.Table:
    """Convert rows to a table of schema `RENDERINGS`."""
    return pa.Table.from_pylist([_rendering_record(row) for row in rows], schema=RENDERINGS)


def rendering_rows(table: pa.Table) -> list[RenderingRow]:
    """Convert a table of schema `RENDERINGS` to rows."""
    rows = []
    for record in table.to_pylist():
        image = record.pop("image")
        rows.append(RenderingRow(image=image["bytes"], image_path=image["path"], **record))
    return rows


def _residual_record(row: ResidualRow) -> dict[str, Any]:
    record = _shallow_dict(row)
    record["ranks"] = [{"layer": layer, "rank": rank} for layer, rank in row.ranks.items()]
    record["metadata"] = [{"key": key, "value": value} for key, value in row.metadata.items()]
    return record


def _rendering_record(row: RenderingRow) -> dict[str, Any]:
    record = _shallow_dict(row)
    record["image"] = {"bytes": row.image, "path": record.pop("image_path")}
    return record


def _shallow_dict(row: ResidualRow | RenderingRow | VariantScores) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in fields(row)}  # asdict would copy the images


def index_table(records: Iterable[ShardCommit]) -> pa.Table:
    """The concepts of commit records, in their order, as a table of schema `INDEX`."""
    names = [column.name for column in fields(CommittedConcept)]
    columns: dict[str, list[Any]] = {name: [] for name in INDEX.names}
    for record in records:
        for concept in record.concepts:
            for name in names:
                columns[name].append(getattr(concept, name))
        for name in ("run_id", "attempt", "shard_id"):
            columns[name].extend([getattr(record, name)] * len(record.concepts))
    columns["scores"] = [
        [{"variant": variant, **_shallow_dict(one)} for variant, one in scores.items()] for scores in columns["scores"]
    ]
    return pa.table([pa.array(columns[column.name], column.type) for column in INDEX], schema=INDEX)


def committed_concepts(table: pa.Table, *, scores: bool = True) -> list[CommittedConcept]:
    """Convert a table of schema `INDEX` to concepts; without `scores`, theirs are empty."""
    names = [column.name for column in fields(CommittedConcept) if scores or column.name != "scores"]
    interned: dict[str, str] = {}  # many rows share a file name
    no_scores: dict[str, VariantScores] = {}
    concepts = []
    for row in zip(*(table.column(name).to_pylist() for name in names), strict=True):
        values = dict(zip(names, row, strict=True))
        for name in ("macro_class", "residual_file", "rendering_file"):
            values[name] = interned.setdefault(values[name], values[name])
        values["rendering_rows"] = tuple(values["rendering_rows"])
        if scores:
            values["scores"] = {one.pop("variant"): VariantScores(**one) for one in values["scores"]}
        else:
            values["scores"] = no_scores
        concepts.append(CommittedConcept(**values))
    return concepts
