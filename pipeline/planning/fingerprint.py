"""Digests of everything that determines a concept's residual, and its renderings. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..catalog.commit_record import Fingerprints
from ..manifest.row import ManifestRow, ReferenceSource
from ..references.addresses import address_digest
from ..spec.run_spec import RunSpec

METHOD_VERSION = 3
"""Incremented whenever a change to the code changes results for unchanged inputs; all concepts are then done again."""


class Fingerprinter:
    """Digests everything that the residual and the renderings of a concept depend on, and nothing else.

    Not digested: where images, models and catalogs are stored, the row's index in the manifest, its metadata, and the
    settings that only affect speed. What rows have in common is serialized once, because a manifest may have a million.

    Args:
        base_revision: the revision of the base model's weights.
        scorer_revision: the revision of the scorer's weights, or None without a scorer.
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
        """The fingerprints of a row; `digests`: those of its reference images, from `digest_references`."""
        return self.of_training(row, _digest(self._training_inputs(row, digests)))

    def of_training(self, row: ManifestRow, training: str) -> Fingerprints:
        """The fingerprints of a row whose training fingerprint is known."""
        return Fingerprints(training, _digest(self._rendering % (_canonical_texts(row.prompts), f'"{training}"')))

    def request(self, row: ManifestRow) -> str:
        """A digest of what a row asks for: as its training fingerprint, but with its references' addresses.

        Equal: neither the row nor a setting of training has changed, whatever lies at the addresses now.
        """
        return _digest(f"request {self._training_inputs(row, tuple(map(_address, row.reference_images)))}")

    def _training_inputs(self, row: ManifestRow, references: tuple[str, ...]) -> str:
        concept_id, macro_class = _canonical(row.concept_id), _canonical(row.macro_class)
        return self._training % (concept_id, macro_class, _canonical_texts(references), row.seed_for(self._seed))


def fingerprint(
    row: ManifestRow, digests: tuple[str, ...], spec: RunSpec, base_revision: str, scorer_revision: str | None
) -> Fingerprints:
    """The fingerprints of one row; arguments as for `Fingerprinter`."""
    return Fingerprinter(spec, base_revision, scorer_revision)(row, digests)


def _address(source: ReferenceSource) -> str:
    if source.data is not None:
        return hashlib.sha256(source.data).hexdigest()
    return address_digest(source.uri or "")


def digest_of(value: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of the sha256 of canonical JSON; the order of keys does not matter.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return _digest(_canonical(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _template(varying: tuple[str, ...], **constant: Any) -> str:
    """The canonical JSON of an object, with `%s` for the value of each varying member; members are sorted by name."""
    members = {name: _canonical(value).replace("%", "%%") for name, value in constant.items()}
    members |= dict.fromkeys(varying, "%s")
    return "{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}"


def _canonical_texts(texts: tuple[str, ...]) -> str:
    return f"[{','.join(map(_canonical, texts))}]"  # `_canonical(texts)` in half the time


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
