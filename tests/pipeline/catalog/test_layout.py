from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.catalog import layout
from persres.pipeline.catalog.layout import AttemptPaths, RunPaths

DIGEST = "0123456789abcdef" * 2
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,20}", fullmatch=True)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a_b", "-x", "a b"])
def test_attempt_paths_refuse_ambiguous_names(name):
    with pytest.raises(ValueError, match="name"):
        _ = AttemptPaths("run", "shard", name).record
    with pytest.raises(ValueError, match="name"):
        layout.index_snapshot("run", name, DIGEST)


def test_attempt_paths_are_unique_for_every_run_shard_and_attempt():
    attempts = [AttemptPaths(run, shard, n) for run in ("r1", "r2") for shard in ("s1", "s2") for n in ("001", "002")]
    names = {path for one in attempts for path in (one.residuals(DIGEST), one.renderings(DIGEST), one.record)}
    assert len(names) == 24


@given(NAMES, NAMES, NAMES)
def test_attempt_paths_are_parsed_back(run, shard, attempt):
    paths = AttemptPaths(run, shard, attempt)
    old_names = [f"{folder}{run}_{shard}_{attempt}.parquet" for folder in (layout.RESIDUALS, layout.RENDERINGS)]
    for path in (paths.residuals(DIGEST), paths.renderings(DIGEST), paths.record, *old_names):
        assert AttemptPaths.parse(path) == paths


@given(st.integers(1, 10**12))
def test_index_version_is_parsed_back(number):
    assert layout.index_version_number(layout.index_version(number)) == number


@given(NAMES)
def test_run_paths_are_parsed_back(run):
    paths = RunPaths(run)
    documents = [paths.spec, paths.plan, paths.log, paths.failures, paths.report, paths.summary, paths.stop_request]
    assert len(set(documents)) == 7
    for path in documents:
        assert RunPaths.parse(path) == paths


@pytest.mark.parametrize(
    "path", ["", "commits", "commits/", "commits/x.json", "commits/a_b_c.parquet", "residuals/a_b_c.json",
             "residuals/x/a_b_c.parquet", "elsewhere/a_b_c.json", "residuals/a_b_c_d.parquet"]
)  # fmt: skip
def test_attempt_paths_parse_no_other_object(path):
    assert AttemptPaths.parse(path) is None


@pytest.mark.parametrize("path", ["", "runs/", "runs/stray.txt", "commits/r/plan.json", "runs//plan.json"])
def test_run_paths_parse_no_other_object(path):
    assert RunPaths.parse(path) is None
