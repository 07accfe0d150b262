"""A Ray head whose autoscaler starts and stops nodes, all on the loopback interface.

    with autoscaling_head({"gpu": (3, {"CPU": 1, "GPU": 1})}) as head:
        subprocess.run([...], env=head.client(HOME=str(head.home)))

The nodes are raylets, started by Ray's own test provider, which claim the resources of their node type.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .loopback_cluster import OBJECT_STORE_BYTES, LoopbackCluster

IDLE_MINUTES = 0.1
"""When an idle node is stopped. With less, a node would be stopped before it gets the actor it was started for."""
_HEAD_ID = "f" * 51 + "00000"  # the instance id of a head in this provider, which must be its node id too
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
# Keys that `ray up` adds and the autoscaler requires.
_EMPTY_LISTS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
_EMPTY_LISTS += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_filter")
_EMPTY_GROUPS = ("file_mounts", "auth", "docker")

NodeTypes = Mapping[str, tuple[int, Mapping[str, int]]]
"""The largest number and the resources of each node type, by its name."""


@dataclass
class AutoscalingHead(LoopbackCluster):
    """A head without CPUs, and the nodes that its autoscaler has started.

    Attributes:
        at_most: the largest number of nodes over all types.
    """

    node_types: NodeTypes = field(default_factory=dict)
    at_most: int = 8

    @property
    def home(self) -> Path:
        """The home folder of the head's user, where the cluster launcher writes the autoscaler's configuration."""
        return self.folder

    @property
    def worker_nodes(self) -> int:
        """How many nodes beside the head are alive; -1 if the cluster does not respond."""
        return self.alive() - 1

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        file = self.home / "ray_bootstrap_config.yaml"  # JSON is YAML
        file.write_text(json.dumps(self._configuration()))
        return super()._start(*arguments, f"--autoscaling-config={file}")

    def _configuration(self) -> dict[str, Any]:
        types = {
            name: {
                "resources": {**resources, "object_store_memory": OBJECT_STORE_BYTES},
                "min_workers": 0,
                "max_workers": most,
                "node_config": {},
            }
            for name, (most, resources) in self.node_types.items()
        }
        head = {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": {}}
        provider = {"type": "external", "module": _PROVIDER, "gcs_address": self.gcs_address}
        return {
            **dict.fromkeys(_EMPTY_LISTS, ()),
            **{group: {} for group in _EMPTY_GROUPS},
            "cluster_name": "loopback",
            "max_workers": self.at_most,
            "idle_timeout_minutes": IDLE_MINUTES,
            "upscaling_speed": 8.0,
            "provider": {**provider, "head_node_id": _HEAD_ID, "launch_multiple": True},
            "available_node_types": {"ray.head.default": head, **types},
            "head_node_type": "ray.head.default",
        }


@contextmanager
def autoscaling_head(node_types: NodeTypes, *, at_most: int = 8, **variables: str) -> Iterator[AutoscalingHead]:
    """Run a head with token authentication, and without other nodes at first, while the block lasts.

    Args:
        at_most: the largest number of nodes over all types.
        variables: added to the environment of its processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="persres-ray-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
    environment = {
        "HOME": str(folder),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    }
    head = AutoscalingHead(
        secrets.token_hex(16), folder, (0, 0), environment | variables, node_types=node_types, at_most=at_most
    )
    try:
        head.start_head()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)
