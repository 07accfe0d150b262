from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.core.residual import Residual
from persres.pipeline.catalog.commit_record import CommittedConcept, VariantScores, blob_digest, rendering_digest
from persres.pipeline.maintenance.verify import rendering_faults, residual_faults

from ...support.catalog_factories import drawing, planned, png, rendering_rows_of
from ...support.catalog_history import RANKS, real_residual_row, seeded_residual

CONCEPT = planned("a")
ROW = real_residual_row(CONCEPT)
IMAGES = rendering_rows_of(CONCEPT)
COMMITTED = CommittedConcept(
    "a",
    "mug",
    "t1",
    "r1",
    "residuals/x.parquet",
    0,
    "renderings/x.parquet",
    (0, len(IMAGES)),
    {"base": VariantScores(2), "lag": VariantScores(2)},
    residual_digest=blob_digest(ROW.residual),
    renderings_digest=rendering_digest(row.image for row in IMAGES),
)
UNKNOWN_DIGESTS = dataclasses.replace(COMMITTED, residual_digest="", renderings_digest="")


def residual(change: dict[str, torch.Tensor], identifier: torch.Tensor | None = None) -> bytes:
    plain = seeded_residual("x")
    return Residual({**plain.a, **change}, plain.b, identifier).to_bytes()


def test_intact_rows_have_no_faults():
    for committed in (COMMITTED, UNKNOWN_DIGESTS):
        assert list(residual_faults(committed, ROW)) == []
        assert list(rendering_faults(committed, IMAGES)) == []
    assert list(residual_faults(UNKNOWN_DIGESTS, real_residual_row(CONCEPT, residual=residual({})))) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"concept_id": "b"}, "row 0 is of concept b"),
        ({"macro_class": "cup"}, "macro_class is 'cup', its record has 'mug'"),
        ({"training_fingerprint": "t2"}, "training_fingerprint is 't2', its record has 't1'"),
        ({"residual": b"no"}, "not a residual"),
        ({"residual": residual({"mid": torch.ones(8, 9)})}, "A and B of mid do not fit"),
        ({"residual": residual({"mid": torch.ones(8)})}, "A and B of mid do not fit"),
        ({"residual": residual({"mid": torch.full((8, 3), math.nan)})}, "mid.A is not finite"),
        ({"residual": residual({}, torch.tensor([math.inf]))}, "the identifier token's embedding is not finite"),
        ({"ranks": {**RANKS, "mid": 4}}, r"the ranks in the row \(mid: 4 instead of 3\)"),
        ({"ranks": {"mid": 3}}, "the ranks in the row"),
        ({"losses": (1.0, math.nan, 1.0)}, "a training loss is not a finite number"),
        ({"final_loss": math.inf}, "a training loss is not a finite number"),
        ({"iterations": 4}, "4 iterations, but 3 losses"),
    ],
)
def test_residual_faults_are_found(change, fault):
    faults = list(residual_faults(UNKNOWN_DIGESTS, dataclasses.replace(ROW, **change)))
    assert len(faults) == 1
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(faults[0])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"concept_id": "b"}, "are of concept b"),
        ({"training_fingerprint": "t2"}, "training_fingerprint is 't2'"),
        ({"rendering_fingerprint": "r2"}, "rendering_fingerprint is 'r2'"),
        ({"image": b"no"}, "a/lag-1-0.png: the image cannot be decoded"),
        ({"image": IMAGES[3].image[:-30]}, "a/lag-1-0.png: the image cannot be decoded"),
        ({"image": png(drawing("x", 25))}, "the image is 25x25, its row says 24x24"),
        ({"prompt_score": math.nan}, "prompt_score is not a finite number"),
        ({"variant": "base", "image_index": 1}, "the record counts"),
    ],
)
def test_rendering_faults_are_found(change, fault):
    rows = [*IMAGES[:3], dataclasses.replace(IMAGES[3], **change)]
    faults = list(rendering_faults(UNKNOWN_DIGESTS, rows))
    assert len(faults) == 1
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(faults[0])


def test_duplicate_rendering_is_found():
    faults = list(rendering_faults(UNKNOWN_DIGESTS, [*IMAGES[:3], IMAGES[1]]))
    assert faults == ["rendered twice: ('lag', 0, 0)"]


@given(st.integers(0, len(ROW.residual) - 1), st.integers(1, 255))
def test_changed_residual_byte_is_found_by_its_digest(place, flip):
    blob = bytearray(ROW.residual)
    blob[place] ^= flip
    faults = list(residual_faults(COMMITTED, dataclasses.replace(ROW, residual=bytes(blob))))
    assert "the residual is not the one that was committed: its digest differs" in faults


def test_changed_image_or_order_is_found_by_the_digest():
    other = dataclasses.replace(IMAGES[0], image=png(drawing("other")))
    for rows in ([other, *IMAGES[1:]], [IMAGES[2], IMAGES[1], IMAGES[0], IMAGES[3]]):
        assert list(rendering_faults(COMMITTED, rows)) == [
            "the renderings are not the ones that were committed: their digest differs"
        ]
