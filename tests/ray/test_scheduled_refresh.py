"""A catalog that is refreshed by the same command while its manifest is edited: every refresh does the expected work.

The JSON output, the webhook's messages and the catalog have to agree; a concept without changes keeps its rows and
files, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persres.jobs.cli.app import main
from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.verify import verify

from ..support.catalog_digest import concept_digests
from ..support.tiny_runs import write_run_spec
from ..support.webhook_receiver import WebhookReceiver, webhook_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPTS = ("a photo of a {concept} on sand", "a photo of a {concept} in the snow")
PRICE = 1.5


@dataclass
class Shop:
    """A manifest that is edited, and the catalog that is refreshed from it."""

    folder: Path
    receiver: WebhookReceiver
    capsys: pytest.CaptureFixture[str]

    def __post_init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.manifest, self.spec = self.folder / "manifest.parquet", self.folder / "run.yaml"
        self.catalog = self.folder / "catalog"
        self.store = CatalogStore(str(self.catalog))

    def put(self, name: str, prompts: tuple[str, ...] | None = None, image: int = 0) -> None:
        """Add or replace a concept; its image depends on its name and `image`."""
        pixels = np.random.default_rng(sum(name.encode()) + image).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / f"{name}.png")
        row = {"concept_id": name, "macro_class": "mug", "reference_images": [f"{name}.png"], "prompts": prompts}
        self.rows[name] = row
        self.write()

    def remove(self, name: str) -> None:
        del self.rows[name]
        self.write()

    def write(self) -> None:
        prompts = pa.array([row["prompts"] for row in self.rows.values()], pa.list_(pa.string()))
        rows = pa.Table.from_pylist([{**row, "prompts": None} for row in self.rows.values()])
        pq.write_table(rows.set_column(3, "prompts", prompts), self.manifest)

    def command(self, *options: str) -> list[str]:
        return ["submit", str(self.manifest), "--spec", str(self.spec), "--catalog", str(self.catalog), *options]

    def refresh(self, *options: str) -> dict[str, Any]:
        """Run the command in this process and its Ray; returns its JSON output."""
        with pytest.raises(SystemExit) as end:
            main(self.command("--workers", "1", "--json", *options))
        output = json.loads(self.capsys.readouterr().out)
        assert (end.value.code or 0) == output["exit_code"]
        return output

    def plan(self) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["plan", *self.command("--workers", "1", "--json")[1:]])
        return json.loads(self.capsys.readouterr().out)

    def committed(self) -> dict[str, tuple[CommittedConcept, str]]:
        """Every concept's entry in the catalog, and the digest of its results."""
        digests = concept_digests(self.store)
        return {name: (concept, digests[name]) for name, concept in read_committed(self.store).items()}

    def data(self) -> dict[str, str]:
        """The digest of every data file."""
        files = sorted(self.catalog.glob("re*/*.parquet"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def shop(tmp_path, capsys, monkeypatch, local_ray) -> Iterator[Shop]:
    with webhook_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        monkeypatch.setenv("PERSRES_WEBHOOK_ON", "ended,idle,failed,stopped,refused,held")
        shop = Shop(tmp_path, receiver, capsys)
        write_run_spec(
            tmp_path,
            prompts=[PROMPTS[0]],
            shard_size=2,
            training={"iterations": 2, "batch_size": 1, "pack_size": 2},
            prices={"device_hour": PRICE, "currency": "EUR"},
        )
        yield shop


def counts(output: dict[str, Any]) -> tuple[int, int, int, int]:
    return output["committed"], len(output["failed"]), output["current"], output["removed"]


def work(output: dict[str, Any]) -> tuple[int, int]:
    """The numbers of concepts trained and of images rendered, as measured by the shards."""
    measured = output["measured"]
    return sum(one["concepts"] for one in measured), sum(one["images"] for one in measured)


def test_each_refresh_does_the_work_that_its_edit_needs(shop):
    for name in "abcd":
        shop.put(name)
    assert "no recent run of this catalog" in shop.plan()["cost"]["missing"]
    first = shop.refresh()
    assert (counts(first), work(first), first["state"]) == ((4, 0, 0, 0), (4, 4), "ended")
    held, files = shop.committed(), shop.data()

    shop.put("e")  # a new concept
    expected = shop.plan()
    assert (expected["train"], expected["render_only"], len(expected["current"])) == (["e"], [], 4)
    cost = expected["cost"]
    assert (cost["concepts"], cost["images"], cost["measured_concepts"], cost["runs"]) == (1, 1, 4, 1)
    assert cost["device_hours"] > 0 and cost["currency"] == "EUR"
    assert cost["amount"] == pytest.approx(PRICE * cost["device_hours"], abs=1e-4)
    second = shop.refresh()
    assert (counts(second), work(second)) == ((1, 0, 4, 0), (1, 1))
    held, files = only_these_changed(shop, {"e"}, held, files)

    shop.put("b", image=1)  # a changed image
    third = shop.refresh()
    assert (counts(third), work(third)) == ((1, 0, 4, 0), (1, 1))
    before = held["b"][0]
    held, files = only_these_changed(shop, {"b"}, held, files)
    assert held["b"][0].training_fingerprint != before.training_fingerprint

    shop.put("c", prompts=PROMPTS)  # an edited prompt
    fourth = shop.refresh()
    assert (counts(fourth), work(fourth)) == ((1, 0, 4, 0), (0, 2))
    before = held["c"][0]
    held, files = only_these_changed(shop, {"c"}, held, files)
    now = held["c"][0]
    assert now.training_fingerprint == before.training_fingerprint, "a prompt trains nothing again"
    assert (now.residual_file, now.residual_row) == (before.residual_file, before.residual_row)

    shop.remove("d")  # a removed concept is kept and reported
    objects = shop.store.list("")
    fifth = by_crontab(shop)
    assert (counts(fifth), fifth["state"], fifth["cost"]) == ((0, 0, 4, 1), "idle", None)
    assert shop.store.list("") == objects, "a refresh without work writes nothing"

    sixth = shop.refresh()  # no change
    assert (counts(sixth), sixth["state"]) == ((0, 0, 4, 1), "idle")

    seventh = shop.refresh("--prune")
    assert (counts(seventh), seventh["pruned"], seventh["state"]) == ((0, 0, 4, 1), 1, "ended")
    kept = {name: digest for name, (_, digest) in shop.committed().items()}
    assert kept == {name: digest for name, (_, digest) in held.items() if name != "d"}
    assert not verify(shop.store).findings

    eighth = shop.refresh("--prune")
    assert (counts(eighth), eighth["pruned"], eighth["state"]) == ((0, 0, 4, 0), 0, "idle")
    check_webhook(shop, [first, second, third, fourth, fifth, sixth, seventh, eighth])


def only_these_changed(
    shop: Shop, names: set[str], held: dict[str, tuple[CommittedConcept, str]], files: dict[str, str]
) -> tuple[dict[str, tuple[CommittedConcept, str]], dict[str, str]]:
    """Check that all other concepts and files are unchanged, byte for byte; returns the new state."""
    now, now_files = shop.committed(), shop.data()
    assert {name for name in now if now[name] != held.get(name)} == names
    assert files.items() <= now_files.items(), "no file of an earlier refresh has changed"
    new = now_files.keys() - files.keys()
    used = {Path(path).name for name in names for path in (now[name][0].residual_file, now[name][0].rendering_file)}
    assert new <= used
    return now, now_files


def by_crontab(shop: Shop) -> dict[str, Any]:
    """Refresh as cron does: sh runs the line that `schedule` writes, with HOME, PATH and the environment file alone."""
    home, line_file = shop.folder / "home", shop.folder / "crontab"
    arguments = shop.command("--workers", "1", "--cron", "0 3 * * *", "--as", "crontab", "--out", str(line_file))
    with pytest.raises(SystemExit):
        main(["schedule", *arguments[1:]])
    shop.capsys.readouterr()
    (home / ".config/persres").mkdir(parents=True)
    (home / "bin").mkdir()
    variables = ("PERSRES_WEBHOOK", "PERSRES_WEBHOOK_ON")
    lines = "".join(f"{name}={os.environ[name]}\n" for name in variables)
    (home / ".config/persres/environment").write_text(lines + "HF_HUB_OFFLINE=1\nOMP_NUM_THREADS=1\n")
    (home / "bin/logger").write_text("#!/bin/sh\nexec cat\n")
    (home / "bin/logger").chmod(0o755)
    (line,) = [line for line in line_file.read_text().splitlines() if not line.startswith("#")]
    assert shop.receiver.url not in line_file.read_text()
    command = line.split(" ", 5)[5].replace(r"\%", "%").replace(" 2>&1 |", " --json 2>/dev/null |")
    path = f"{home / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env={"HOME": str(home), "PATH": path}, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def check_webhook(shop: Shop, refreshes: list[dict[str, Any]]) -> None:
    """Check that the webhook has one message for each refresh, with the content of the JSON output."""
    assert len(shop.receiver.messages) == len(refreshes)
    for message, output in zip(shop.receiver.messages, refreshes, strict=True):
        for name in ("run_id", "state", "exit_code", "report", "wall_seconds"):
            assert message[name] == output[name], name
        seen = message["counts"]
        assert (seen["committed"], seen["failed"], seen["current"], seen["removed"]) == counts(output)
        assert seen["pruned"] == output["pruned"]
        if output["cost"] is not None:
            assert message["cost"]["device_hours"] == output["cost"]["device_hours"] > 0
            assert message["cost"]["currency"] == "EUR" and "device" in message["text"]
        assert str(shop.catalog) in message["text"]


def test_refresh_of_an_invalid_manifest_is_reported_as_refused(shop):
    pq.write_table(pa.table({"concept_id": ["a"]}), shop.manifest)
    output = shop.refresh()
    assert (output["state"], output["exit_code"], output["run_id"]) == ("refused", 2, None)
    assert output["error"] and output["fix"] and output["problems"][0]["column"]
    (message,) = shop.receiver.messages
    assert message["state"] == "refused" and "Fix" in message["text"] and message["counts"] is None
