"""Hypothesis strategies for commit records."""

from __future__ import annotations

from hypothesis import strategies as st

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit, VariantScores

concepts = st.builds(
    CommittedConcept,
    concept_id=st.sampled_from("abc"),
    macro_class=st.text(max_size=4),
    training_fingerprint=st.sampled_from(["t1", "t2"]),
    rendering_fingerprint=st.just("r1"),
    residual_file=st.just("residuals/x.parquet"),
    residual_row=st.integers(0, 9),
    rendering_file=st.one_of(st.none(), st.just("renderings/x.parquet")),
    rendering_rows=st.tuples(st.integers(0, 99), st.integers(0, 9)),
    scores=st.dictionaries(
        st.sampled_from(["base", "lag"]),
        st.builds(VariantScores, images=st.integers(1, 9), prompt_score=st.one_of(st.none(), st.floats(-1, 1))),
        max_size=2,
    ),
    residual_digest=st.sampled_from(["", "0123"]),
)
records = st.builds(
    ShardCommit,
    run_id=st.sampled_from(["20260101T000000Z-aaaaaa", "20260102T000000Z-000000"]),
    shard_id=st.sampled_from(["train-1", "train-2"]),
    attempt=st.sampled_from(["001", "002"]),
    kind=st.sampled_from(["train", "render"]),
    files=st.just({"residuals": "residuals/x.parquet"}),
    concepts=st.lists(concepts, max_size=3, unique_by=lambda one: one.concept_id).map(tuple),
    failures=st.just((ConceptFailure("z", "load", "cannot be read", "send another"),)),
    seconds=st.just({"train": 1.5}),
)


def attempt_of(record: ShardCommit) -> tuple[str, str, str]:
    """Which attempt wrote a record; no two records of a catalog have the same."""
    return record.run_id, record.shard_id, record.attempt
