"""Writes the two example manifests in jobs/deploy, with the code behind `persres-batch schedule`.

.venv/bin/python tests/support/kuberay_examples.py
"""

from __future__ import annotations

from persres.jobs.schedule.cron import CronSchedule
from persres.jobs.schedule.kuberay import DEPLOY, ray_cron_job, ray_job, to_yaml
from persres.jobs.schedule.units import Refresh
from persres.pipeline.spec.run_spec import RunSpec

IMAGE = "registry.example.com/persres-batch:0.1.0"
HEAD = """\
An example, written by tests/support/kuberay_examples.py:
{what}
The cluster is that of raycluster.yaml, whose comments explain it. The run spec is the default one.
"""


def example_manifests() -> dict[str, str]:
    """The text of each example by file name."""
    refresh = Refresh(
        "persres-mugs", CronSchedule.parse("0 3 * * *"), "s3://example-bucket/mugs.parquet", "s3://example-bucket/mugs"
    )
    once = "a run on a cluster of its own, which is removed ten minutes after the run."
    nightly = "such a run every night. `persres-batch schedule --as raycronjob` writes yours.\n"
    nightly += "Needs KubeRay 1.6 or newer with its feature gate RayCronJob on, which is alpha."
    return {
        "rayjob.yaml": to_yaml(ray_job(refresh, RunSpec(), image=IMAGE), comment=HEAD.format(what=once)),
        "raycronjob.yaml": to_yaml(ray_cron_job(refresh, RunSpec(), image=IMAGE), comment=HEAD.format(what=nightly)),
    }


if __name__ == "__main__":
    for name, text in example_manifests().items():
        (DEPLOY / name).write_text(text, encoding="utf-8")
