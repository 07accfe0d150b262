"""What determines a residual, and what determines a rendering, each as one digest. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..catalog.commit_record import Fingerprints
from ..manifest.row import ManifestRow

if TYPE_CHECKING:  # importing it loads torch, which comparing digests does not need
    from ..spec.run_spec import RunSpec

METHOD_VERSION = 2
"""Raised whenever a change to the code changes results for unchanged inputs; every concept is then done again."""


class Fingerprinter:
    """Digests everything that a concept's residual and renderings depend on, and nothing else, for any number of rows.

    Where images, models and catalogs are stored, the row's place in the manifest, its metadata and the settings that
    only change speed are left out. What all rows have in common is written out once: a million rows are to be planned.

    Args:
        base_revision: the revision of the base model's weights.
        scorer_revision: the revision of the scorer's, or None without one.
    """

    def __init__(self, spec: RunSpec, base_revision: str, scorer_revision: str | None) -> None:
        self._seed = spec.seed
        self._training = _template(
            ("concept_id", "macro_class", "references", "seed"),  # the random numbers of a concept come from its id
            method=METHOD_VERSION,
            base=base_revision,
            reading=spec.references.fingerprint_fields(),
            training=spec.training.fingerprint_fields(),
        )
        self._rendering = _template(
            ("prompts", "training"),
            sampling=spec.sampling.fingerprint_fields(),
            scoring=spec.scoring.fingerprint_fields(),
            scorer=scorer_revision,
        )

    def __call__(self, row: ManifestRow, digests: tuple[str, ...]) -> Fingerprints:
        """A row's fingerprints; `digests`: `digest_references(row, …)`, images in order."""
        concept_id, macro_class = _canonical(row.concept_id), _canonical(row.macro_class)
        seed = row.seed_for(self._seed)
        training = _digest(self._training % (concept_id, macro_class, _canonical_texts(digests), seed))
        return Fingerprints(training, _digest(self._rendering % (_canonical_texts(row.prompts), f'"{training}"')))


def fingerprint(
    row: ManifestRow, digests: tuple[str, ...], spec: RunSpec, base_revision: str, scorer_revision: str | None
) -> Fingerprints:
    """One row's fingerprints, as `Fingerprinter` makes them."""
    return Fingerprinter(spec, base_revision, scorer_revision)(row, digests)


def digest_of(value: Mapping[str, Any]) -> str:
    """32 hexadecimal digits over canonical JSON; equal for equal values, whatever the order of their keys.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return _digest(_canonical(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _template(varying: tuple[str, ...], **constant: Any) -> str:
    """The canonical JSON of an object, with `%s` for each varying member, in their sorted order."""
    members = {name: _canonical(value).replace("%", "%%") for name, value in constant.items()}
    members |= dict.fromkeys(varying, "%s")
    return "{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}"


def _canonical_texts(texts: tuple[str, ...]) -> str:
    return f"[{','.join(map(_canonical, texts))}]"  # what `_canonical` itself takes twice as long for


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
