"""The nodes that a cluster has and that its autoscaler may start. test_autoscaling.py uses a real autoscaler."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.util import prepare_config

from persres.jobs.cluster.nodes import NodeType, describe_resources, max_cluster_gpus, max_gpu_workers
from persres.jobs.cluster.placement import Placement, connect_ray
from persres.pipeline.spec.run_spec import RunSpec

PROJECT = Path(__file__).parents[2]

node_types = st.lists(st.builds(NodeType, *(st.integers(0, 3),) * 3), max_size=3)


@given(node_types, st.integers(0, 4))
def test_max_gpu_workers_is_the_largest_number_over_all_choices_of_nodes(types, max_nodes):
    nodes = [min(node_type.gpus, node_type.cpus) for node_type in types for _ in range(node_type.max_nodes)]
    choices = (choice for count in range(max_nodes + 1) for choice in combinations(nodes, count))
    best = max(map(sum, choices))
    assert max_gpu_workers(types, max_nodes) == best


@pytest.fixture
def launched(tmp_path, monkeypatch, local_ray):
    """Write an autoscaler's configuration where the cluster launcher does."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(max_nodes: int, **types: dict[str, object]) -> None:
        configuration = {"max_workers": max_nodes, "available_node_types": types}
        (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(configuration))

    return write


def test_cluster_without_known_node_types_has_only_its_own_gpus(launched):
    assert max_cluster_gpus() == 0 and "may start" not in describe_resources("cuda")
    with connect_ray(Placement(join_cluster=True), RunSpec()) as connection:
        assert (connection.device, connection.workers()) == ("cpu", 2)


def test_gpus_of_nodes_that_may_be_started_count(launched):
    launched(4, head={"resources": {"CPU": 0}, "max_workers": 0}, gpu={"resources": {"CPU": 8, "GPU": 2}})
    assert max_cluster_gpus() == 8 and describe_resources("cuda").endswith("and may start nodes for 8")
    with connect_ray(Placement(join_cluster=True), RunSpec()) as connection:
        assert (connection.device, connection.workers()) == ("cuda", 8)


def test_cluster_file_allows_a_worker_for_each_node(launched):
    """As `ray up` writes it to the head."""
    prepared = prepare_config(yaml.safe_load((PROJECT / "cluster.yaml").read_text()))
    launched(prepared["max_workers"], **prepared["available_node_types"])
    assert max_cluster_gpus() == prepared["max_workers"] == 8


def test_given_device_and_number_of_workers_take_precedence(launched):
    launched(4, gpu={"resources": {"CPU": 8, "GPU": 2}})
    with connect_ray(Placement(3, join_cluster=True), RunSpec()) as connection:
        assert (connection.device, connection.workers()) == ("cuda", 3)
    with connect_ray(Placement(device="cpu", join_cluster=True), RunSpec()) as connection:
        assert (connection.device, connection.workers()) == ("cpu", 2)


def test_node_types_reported_to_the_cluster_take_precedence(launched):
    """Reported as Ray's own tests do: the open-source autoscaler does not report them."""
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
        assert state.get_cluster_config() == kind and max_cluster_gpus() == 5
    finally:
        client.report_cluster_config(ClusterConfig().SerializeToString())
    assert max_cluster_gpus() == 2
