from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.sampling.settings import SamplingSettings
from persres.core.scoring.settings import ScoringSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.fingerprint import METHOD_VERSION, Fingerprinter, digest_of, fingerprint
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.spec.run_spec import RunSpec

ROW = ManifestRow(0, "mug-1", "mug", (ReferenceSource("/a.png"),), ("a {concept}",))


def of(
    row: ManifestRow = ROW, digests=("d1",), base: str = "b1", scorer: str | None = "s1", **spec: Any
) -> Fingerprints:
    return fingerprint(row, digests, RunSpec(**spec), base, scorer)


def changed(**fields: Any) -> ManifestRow:
    return dataclasses.replace(ROW, **fields)


@pytest.mark.parametrize(
    "other",
    [
        of(changed(concept_id="mug-2")),
        of(changed(macro_class="cup")),
        of(changed(seed=1)),
        of(seed=1),
        of(digests=("d2",)),
        of(digests=("d1", "d1")),
        of(base="b2"),
        of(training=TrainingSettings(iterations=7)),
        of(references=ReferenceSettings(matte_color="black")),
    ],
)
def test_input_of_the_residual_changes_both_fingerprints(other):
    assert other.training != of().training
    assert other.rendering != of().rendering


@pytest.mark.parametrize(
    "other",
    [
        of(changed(prompts=("the {concept}",))),
        of(changed(prompts=("a {concept}", "the {concept}"))),
        of(sampling=SamplingSettings(steps=7)),
        of(scoring=ScoringSettings(min_prompt_score=0.2)),
        of(scorer="s2"),
        of(scorer=None),
    ],
)
def test_input_of_renderings_changes_only_the_rendering_fingerprint(other):
    assert other.training == of().training
    assert other.rendering != of().rendering


@pytest.mark.parametrize(
    "other",
    [
        of(changed(row=9, metadata={"sku": "1"}, reference_images=(ReferenceSource("s3://moved/a.png"),))),
        of(changed(seed=0)),  # the run's seed, given in the row
        of(training=TrainingSettings(pack_size=9), sampling=SamplingSettings(batch_size=9)),
        of(scoring=ScoringSettings(batch_size=9), shard_size=3, workers=5),
        of(references=ReferenceSettings(max_bytes=5, max_pixels=5, min_side=1, digest="content")),
        of(base_model="/somewhere/else", prompts=("unused {concept}",)),
    ],
)
def test_fingerprints_do_not_depend_on_places_speed_and_limits(other):
    assert other == of()


def test_digest_is_stable_across_versions():
    # If this changes, all concepts of existing catalogs are done again.
    canonical = rb'{"a":{"x":[],"y":true},"b":[1,2.5,null,"\u00e9"]}'
    assert digest_of({"b": [1, 2.5, None, "é"], "a": {"y": True, "x": ()}}) == sha256(canonical).hexdigest()[:32]


values = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=6
)


@given(values, st.randoms())
def test_digest_does_not_depend_on_the_order_of_keys(value, random):
    keys = list(value)
    random.shuffle(keys)

    assert digest_of({key: value[key] for key in keys}) == digest_of(value)


@given(values, values)
def test_digests_of_different_values_differ(one, other):
    same = digest_of(one) == digest_of(other)

    assert same == (repr(sorted(one.items())) == repr(sorted(other.items())))


def test_digest_of_a_value_without_canonical_form_raises():
    with pytest.raises(ValueError):
        digest_of({"a": float("nan")})
    with pytest.raises(TypeError):
        digest_of({"a": object()})


texts = st.text(max_size=6)


@given(
    st.builds(
        ManifestRow,
        st.integers(0, 9),
        texts,
        texts,
        st.just((ReferenceSource("/a.png"),)),
        st.lists(texts, max_size=3).map(tuple),
        st.none() | st.integers(0, 2**63 - 1),
    ),
    st.lists(texts, max_size=3).map(tuple),
    st.none() | texts,
    st.sampled_from(["white", "#00ff00"]),
)
def test_fingerprints_equal_digests_of_plain_objects(row, digests, scorer, color):
    """`Fingerprinter` serializes what rows have in common once; the result is the same."""
    spec = RunSpec(prompts=("100% {concept}",), references=ReferenceSettings(matte_color=color), seed=3)
    training = digest_of(
        {
            "method": METHOD_VERSION,
            "base": "50%s",
            "concept_id": row.concept_id,
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
            "scorer": scorer,
        }
    )
    assert Fingerprinter(spec, "50%s", scorer)(row, digests) == Fingerprints(training, rendering)
