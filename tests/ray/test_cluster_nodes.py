"""What a cluster has and could have. tests/ray/test_autoscaling.py asks a real autoscaler."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config

from persres.jobs.cluster.nodes import NodeType, gpus_to_be_had, most_gpu_workers, resources_in_words
from persres.jobs.cluster.placement import WhereToRun, workplace
from persres.pipeline.spec.run_spec import RunSpec

PROJECT = Path(__file__).parents[2]

node_types = st.lists(st.builds(NodeType, *(st.integers(0, 3),) * 3), max_size=3)


@given(node_types, st.integers(0, 4))
def test_no_choice_of_machines_has_more_workers(types, most_nodes):
    machines = [min(kind.gpus, kind.cpus) for kind in types for _ in range(kind.most)]
    choices = (choice for count in range(most_nodes + 1) for choice in combinations(machines, count))
    best = max(map(sum, choices))
    assert most_gpu_workers(types, most_nodes) == best


@pytest.fixture
def launched(tmp_path, monkeypatch, local_ray):
    """Leaves an autoscaler's configuration where the cluster launcher does."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(most_nodes: int, **types: dict[str, object]) -> None:
        configuration = {"max_workers": most_nodes, "available_node_types": types}
        (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(configuration))

    return write


def test_where_nothing_is_known_there_are_no_more_gpus_than_those_there(launched):
    assert gpus_to_be_had() == 0 and "may start" not in resources_in_words("cuda")
    with workplace(WhereToRun(join_cluster=True), RunSpec()) as place:
        assert (place.device, place.workers()) == ("cpu", 2)


def test_machines_that_may_be_started_count_as_if_they_were_there(launched):
    launched(4, head={"resources": {"CPU": 0}, "max_workers": 0}, gpu={"resources": {"CPU": 8, "GPU": 2}})
    assert gpus_to_be_had() == 8 and resources_in_words("cuda").endswith("and may start machines for 8")
    with workplace(WhereToRun(join_cluster=True), RunSpec()) as place:
        assert (place.device, place.workers()) == ("cuda", 8)


def test_our_own_cluster_file_allows_a_worker_a_machine(launched):
    """As `ray up` leaves it on the head."""
    prepared = prepare_config(yaml.safe_load((PROJECT / "cluster.yaml").read_text()))
    launched(prepared["max_workers"], **prepared["available_node_types"])
    assert gpus_to_be_had() == prepared["max_workers"] == 8


def test_what_was_asked_for_stands(launched):
    launched(4, gpu={"resources": {"CPU": 8, "GPU": 2}})
    with workplace(WhereToRun(3, join_cluster=True), RunSpec()) as place:
        assert (place.device, place.workers()) == ("cuda", 3)
    with workplace(WhereToRun(device="cpu", join_cluster=True), RunSpec()) as place:
        assert (place.device, place.workers()) == ("cpu", 2)


def test_what_an_autoscaler_has_told_the_cluster_counts_first(launched):
    """As Ray's own tests report it; the open autoscaler keeps it to itself."""
    from ray._private.state import state
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    launched(1, gpu={"resources": {"CPU": 8, "GPU": 2}})
    group = {"resources": {"CPU": 4, "GPU": 1}, "max_count": 5, "name": "gpu"}
    kind = ClusterConfig()
    kind.node_group_configs.add(**group)
    client = global_worker.gcs_client
    client.report_cluster_config(kind.SerializeToString())
    try:
        assert state.get_cluster_config() == kind and gpus_to_be_had() == 5
    finally:
        client.report_cluster_config(ClusterConfig().SerializeToString())
    assert gpus_to_be_had() == 2
