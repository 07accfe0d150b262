"""RayJobs and RayCronJobs: a cluster as in raycluster.yaml, the spec in a ConfigMap, `submit` on its head."""

from __future__ import annotations

import shlex

import pytest
import yaml

from persres.core.errors import InvalidInput
from persres.jobs.cli.app import main
from persres.jobs.schedule.cron import CronSchedule
from persres.jobs.schedule.kuberay import SPEC_FOLDER, cluster_spec, ray_cron_job, ray_job, to_yaml
from persres.jobs.schedule.units import Refresh
from persres.pipeline.spec.run_spec import RunSpec

IMAGE = "registry.example.com/persres-batch:0.1.0"


def refresh(manifest: str = "s3://bucket/mugs.parquet", catalog: str = "s3://bucket/mugs", **changes) -> Refresh:
    return Refresh("persres-mugs", CronSchedule.parse("0 3 * * 7"), manifest, catalog, **changes)


def job_of(scheduled: Refresh, spec: RunSpec | None = None, image: str = IMAGE) -> dict:
    _, job = ray_job(scheduled, spec or RunSpec(), image=image)
    return job["spec"]


def test_entrypoint_is_a_submit_that_the_command_line_parses(capsys):
    scheduled = refresh("s3://bucket/it's 50%.parquet", workers=3, prune=True)
    program, *arguments = shlex.split(job_of(scheduled)["entrypoint"])
    assert program == "persres-batch"
    assert arguments[1] == "s3://bucket/it's 50%.parquet"
    assert arguments[arguments.index("--address") + 1] == "auto"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert not end.value.code
    assert "--prune" in arguments


def test_run_spec_is_in_a_config_map_that_only_the_head_mounts():
    spec = RunSpec(seed=7, prompts=("a {concept} on Mars", "ein {concept} im Schnee – nachts"))
    written = to_yaml(ray_cron_job(refresh(), spec, image=IMAGE), comment="two\nlines")
    assert written.startswith("# two\n# lines\n---\n")
    config_map, cron_job = yaml.safe_load_all(written)
    assert RunSpec.from_yaml(config_map["data"]["run.yaml"]) == spec
    assert cron_job["spec"]["schedule"] == "0 3 * * 0"
    cluster = cron_job["spec"]["jobTemplate"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"]
    assert {"name": "run-spec", "configMap": {"name": config_map["metadata"]["name"]}} in head["volumes"]
    assert [one["name"] for one in workers["template"]["spec"]["volumes"]] == ["cache"]
    assert f"{SPEC_FOLDER}/run.yaml" in shlex.split(cron_job["spec"]["jobTemplate"]["entrypoint"])


@pytest.mark.parametrize(
    ("scheduled", "spec", "workers"),
    [(refresh(), RunSpec(), 8), (refresh(), RunSpec(workers=5), 5), (refresh(workers=12), RunSpec(workers=5), 12)],
)
def test_entrypoint_always_gives_the_number_of_workers(scheduled, spec, workers):
    job = job_of(scheduled, spec)
    arguments = shlex.split(job["entrypoint"])
    assert arguments[arguments.index("--workers") + 1] == str(workers)
    assert job["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == workers


def test_cluster_is_that_of_raycluster_yaml_but_for_image_size_and_spec():
    cluster, described = job_of(refresh())["rayClusterSpec"], cluster_spec()
    for one in (cluster, described):
        head = one["headGroupSpec"]["template"]["spec"]
        head["volumes"] = [volume for volume in head["volumes"] if volume["name"] != "run-spec"]
        mounts = head["containers"][0]["volumeMounts"]
        head["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] != "run-spec"]
    assert cluster == described


def test_every_container_has_the_given_image():
    image = f"registry.example.com:5000/team/persres@sha256:{'0' * 64}"
    cluster = job_of(refresh(), image=image)["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert {pod["template"]["spec"]["containers"][0]["image"] for pod in pods} == {image}


@pytest.mark.parametrize(
    "image", ["persres-batch", "persres-batch:latest", "registry:5000/persres-batch", "x@sha256:12", "x:1 y", ""]
)
def test_image_without_a_fixed_version_is_refused(image):
    with pytest.raises(InvalidInput, match="no fixed version"):
        job_of(refresh(), image=image)


@pytest.mark.parametrize("paths", [("mugs.parquet", "s3://bucket/mugs"), ("s3://bucket/m.parquet", "/data/mugs")])
def test_local_path_is_refused(paths):
    with pytest.raises(InvalidInput, match="no pod can resolve"):
        job_of(refresh(*paths))


def test_spec_too_large_for_a_config_map_is_refused():
    spec = RunSpec(prompts=tuple(f"a {{concept}} {'in a long long line ' * 40}{n}" for n in range(1400)))
    with pytest.raises(InvalidInput, match="ConfigMap"):
        ray_job(refresh(), spec, image=IMAGE)
