"""Runs on Kubernetes, each with a Ray cluster of its own: a RayJob for one run, a RayCronJob for a schedule.

The cluster is that of deploy/raycluster.yaml, whose comments explain it. The run spec is in a ConfigMap, and the
entrypoint is `submit` inside the cluster.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from ...core.errors import InvalidInput
from ...core.timing import FINISHED_CLUSTER_TTL_S
from ...pipeline.spec.run_spec import RunSpec
from .units import Refresh

DEPLOY = Path(__file__).parents[1] / "deploy"
SPEC_FOLDER = "/etc/persres"
MAX_SPEC_BYTES = 1_000_000  # a ConfigMap may have 1 MiB, including its other fields

Manifest = dict[str, Any]


def ray_job(refresh: Refresh, spec: RunSpec, *, image: str) -> list[Manifest]:
    """The ConfigMap and the RayJob of one run; the refresh's `cron` is ignored.

    Args:
        image: with persres-batch installed, such as deploy/Dockerfile builds.

    Raises:
        InvalidInput: the image has no fixed version, a path is local to this machine, or the spec is too large.
    """
    return [_spec_map(refresh, spec), _manifest("RayJob", refresh.name, _job(refresh, spec, image))]


def ray_cron_job(refresh: Refresh, spec: RunSpec, *, image: str) -> list[Manifest]:
    """The ConfigMap and the RayCronJob (KubeRay 1.6, alpha) of a refresh; arguments and errors as for `ray_job`.

    RayCronJob has no policy for overlapping runs: the catalog's lease prevents a second one from doing anything.
    """
    body = {"schedule": refresh.cron.expression, "jobTemplate": _job(refresh, spec, image)}
    return [_spec_map(refresh, spec), _manifest("RayCronJob", refresh.name, body)]


def to_yaml(manifests: list[Manifest], *, comment: str = "") -> str:
    """The manifests as a file for `kubectl apply -f`, below `comment`."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + yaml.dump_all(
        manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, explicit_start=bool(manifests[1:])
    )


def cluster_spec() -> Manifest:
    """The `spec` of deploy/raycluster.yaml, with a separate object in each place where it uses an anchor."""
    spec = yaml.safe_load((DEPLOY / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    return json.loads(json.dumps(spec))


def _job(refresh: Refresh, spec: RunSpec, image: str) -> Manifest:
    """A RayJob's `spec`: the cluster, and the command on its head."""
    _require_pinned(image)
    for what, uri in (("manifest", refresh.manifest_uri), ("catalog", refresh.catalog_uri)):
        if "://" not in uri:
            reason = f"{what} {uri!r} is a path, which no pod can resolve"
            raise InvalidInput(reason, fix="give a URI such as s3://bucket/mugs")
    cluster = cluster_spec()
    (workers,) = cluster["workerGroupSpecs"]
    # Always given, because by default a run has as many workers as there are GPUs, and at its start there are none.
    max_workers = refresh.workers or spec.workers or workers["maxReplicas"]
    workers["maxReplicas"] = max_workers
    head = cluster["headGroupSpec"]["template"]["spec"]
    for pod in (head, workers["template"]["spec"]):
        pod["containers"][0]["image"] = image
    head["volumes"].append({"name": "run-spec", "configMap": {"name": refresh.name}})
    head["containers"][0]["volumeMounts"].append({"name": "run-spec", "mountPath": SPEC_FOLDER, "readOnly": True})
    entrypoint = ["persres-batch", "submit", refresh.manifest_uri, "--spec", f"{SPEC_FOLDER}/run.yaml"]
    entrypoint += ["--catalog", refresh.catalog_uri, "--address", "auto", "--device", "cuda"]
    entrypoint += ["--workers", str(max_workers), *(["--prune"] if refresh.prune else [])]
    return {
        "entrypoint": shlex.join(entrypoint),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": FINISHED_CLUSTER_TTL_S,
        "backoffLimit": 0,
        "rayClusterSpec": cluster,
    }


def _spec_map(refresh: Refresh, spec: RunSpec) -> Manifest:
    text = spec.to_yaml()
    if len(text.encode()) > MAX_SPEC_BYTES:
        reason = f"the run spec has {len(text.encode())} bytes, and a ConfigMap holds {MAX_SPEC_BYTES}"
        raise InvalidInput(reason, fix="move its prompts into the manifest's rows")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": refresh.name}, "data": {"run.yaml": text}}


def _manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _require_pinned(image: str) -> None:
    """Refuse an image whose content may change, because results depend on the versions in it."""
    name, at, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    pinned = re.fullmatch(r"sha256:[0-9a-f]{64}", digest) if at else tag and tag != "latest"
    if not pinned or not re.fullmatch(r"\w[\w.:/-]*", name):
        fix = "name a version, such as registry.example.com/persres-batch:0.1.0, or a digest"
        raise InvalidInput(f"image {json.dumps(image)} has no fixed version", fix=fix)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # what raycluster.yaml shares between head and workers is written out for each

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
