"""What determines a residual, and what determines a rendering, each as one digest. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .manifest_row import ManifestRow

if TYPE_CHECKING:  # importing it loads torch, which comparing digests does not need
    from .run_spec import RunSpec

METHOD_VERSION = 1
"""Raised whenever a change to the code changes results for unchanged inputs; every concept is then done again."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Two digests, 32 hexadecimal digits each.

    Attributes:
        training: equal only for equal residuals.
        rendering: equal only for equal renderings and scores.
    """

    training: str
    rendering: str


def fingerprint(
    row: ManifestRow, digests: tuple[str, ...], spec: RunSpec, base_revision: str, scorer_revision: str | None
) -> Fingerprints:
    """Digest everything that a concept's residual and renderings depend on, and nothing else.

    Where images, models and catalogs are stored, the row's place in the manifest, its metadata and the settings that
    only change speed are left out.

    Args:
        digests: `digest_references(row, …)`: images in order.
        base_revision: the revision of the base model's weights.
        scorer_revision: the revision of the scorer's, or None without one.
    """
    training = digest_of(
        {
            "method": METHOD_VERSION,
            "base": base_revision,
            "concept_id": row.concept_id,  # its random numbers come from it
            "seed": row.seed_for(spec.seed),
            "macro_class": row.macro_class,
            "references": digests,
            "reading": spec.references.fingerprint_fields(),
            "training": spec.training.fingerprint_fields(),
        }
    )
    rendering = digest_of(
        {
            "training": training,
            "prompts": row.prompts,
            "sampling": spec.sampling.fingerprint_fields(),
            "scoring": spec.scoring.fingerprint_fields(),
            "scorer": scorer_revision,
        }
    )
    return Fingerprints(training, rendering)


def digest_of(value: Mapping[str, Any]) -> str:
    """32 hexadecimal digits over canonical JSON; equal for equal values, whatever the order of their keys.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
