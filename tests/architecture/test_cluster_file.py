"""cluster.yaml, held against what can be had without a cloud: Ray's schema, EC2's request, and rules of our own."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
WRITTEN = yaml.safe_load((ROOT / "cluster.yaml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


@pytest.fixture
def cluster(monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)  # local paths of file_mounts start here
    config = prepare_config(copy.deepcopy(WRITTEN))
    validate_config(config)
    return config


def faults_of(node_config: dict[str, Any]) -> str:
    """What EC2 would not understand in a node's configuration, by botocore's description of the request."""
    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances")
    request = {**node_config, "MinCount": 1, "MaxCount": 1}
    return ParamValidator().validate(request, model.input_shape).generate_report()


def test_ec2_understands_every_nodes_configuration(cluster):
    for name, node in cluster["available_node_types"].items():
        assert faults_of(node["node_config"]) == "", name


def test_a_slip_in_a_nodes_configuration_would_be_found(cluster):
    node = copy.deepcopy(cluster["available_node_types"]["gpu_spot"]["node_config"])
    node["InstanceMarketOptions"]["SpotOption"] = node["InstanceMarketOptions"].pop("SpotOptions")
    node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = "150"
    assert "SpotOption" in faults_of(node)
    assert "VolumeSize" in faults_of(node)


def test_the_head_has_no_worker_and_workers_come_and_go(cluster):
    head, workers = cluster["available_node_types"]["head"], cluster["available_node_types"]["gpu_spot"]
    assert cluster["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert (workers["min_workers"], workers["max_workers"]) == (0, cluster["max_workers"])
    assert workers["resources"]["GPU"] == 1
    assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in head["node_config"]


def test_no_call_gets_in_without_the_token():
    options = WRITTEN["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    (path,) = [option.partition("TOKEN_PATH=")[2] for option in options if "TOKEN_PATH" in option]
    assert WRITTEN["file_mounts"][path] == "~/.ray/auth_token"


def test_the_dashboard_listens_on_the_heads_loopback_only():
    (start,) = [command for command in WRITTEN["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()


def test_base_models_are_kept_on_the_nodes_own_disk():
    options = WRITTEN["docker"]["run_options"]
    kept = [option.split("=", 2)[2] for option in options if re.search("HF_HOME|PERSRES_CACHE", option)]
    (volume,) = [option.partition("--volume=")[2] for option in options if option.startswith("--volume=")]
    on_the_node, inside = volume.split(":")
    assert len(kept) == 2 and all(folder.startswith(f"{inside}/") for folder in kept)
    assert f"mkdir -p {on_the_node} " in " ".join(WRITTEN["initialization_commands"])


def test_python_and_ray_are_those_of_the_constraints():
    image, _, tag = WRITTEN["docker"]["image"].partition(":")
    assert (image, tag.split("-")[0]) == ("rayproject/ray", PINS["ray"])


def test_disks_are_encrypted_and_the_instances_role_is_not_for_every_url():
    for node in WRITTEN["available_node_types"].values():
        assert all(device["Ebs"]["Encrypted"] for device in node["node_config"]["BlockDeviceMappings"])
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


def test_no_secret_is_written():
    text = (ROOT / "cluster.yaml").read_text()
    assert not [word for word in ("AKIA", "aws_secret", "hf_", "BEGIN RSA") if word in text]


@pytest.mark.parametrize("command", [command for name in COMMANDS for command in WRITTEN[name]])
def test_bash_can_read_every_command(command):
    read = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")
