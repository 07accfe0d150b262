"""A catalog that is refreshed every night while people edit its manifest: exactly the expected work, night after night.

Every night is the same command line. What it prints as JSON, what the webhook hears, and what lies in the catalog have
to agree; a concept that nobody touched keeps its very objects, to the last byte.
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
import yaml
from PIL import Image

from persres.jobs.cli.app import main
from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.verify import verify

from ..support.catalog_digest import concept_digests
from ..support.tiny_models import write_tiny_pipeline
from ..support.web_receiver import Receiver, web_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMPTS = ("a photo of a {concept} on sand", "a photo of a {concept} in the snow")
PRICE = 1.5


@dataclass
class Shop:
    """A manifest that people edit, and the catalog that is to follow it."""

    folder: Path
    receiver: Receiver
    capsys: pytest.CaptureFixture[str]

    def __post_init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.manifest, self.spec = self.folder / "manifest.parquet", self.folder / "run.yaml"
        self.catalog = self.folder / "catalog"
        self.store = CatalogStore(str(self.catalog))

    def stock(self, name: str, prompts: tuple[str, ...] | None = None, picture: int = 0) -> None:
        """List a concept, or edit it: its picture follows from its name and `picture`."""
        pixels = np.random.default_rng(sum(name.encode()) + picture).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / f"{name}.png")
        row = {"concept_id": name, "macro_class": "mug", "reference_images": [f"{name}.png"], "prompts": prompts}
        self.rows[name] = row
        self.write()

    def drop(self, name: str) -> None:
        del self.rows[name]
        self.write()

    def write(self) -> None:
        prompts = pa.array([row["prompts"] for row in self.rows.values()], pa.list_(pa.string()))
        rows = pa.Table.from_pylist([{**row, "prompts": None} for row in self.rows.values()])
        pq.write_table(rows.set_column(3, "prompts", prompts), self.manifest)

    def command(self, *options: str) -> list[str]:
        return ["submit", str(self.manifest), "--spec", str(self.spec), "--catalog", str(self.catalog), *options]

    def night(self, *options: str) -> dict[str, Any]:
        """The same command, in this process and its Ray; returns what it says as JSON."""
        with pytest.raises(SystemExit) as end:
            main(self.command("--workers", "1", "--json", *options))
        told = json.loads(self.capsys.readouterr().out)
        assert (end.value.code or 0) == told["exit_code"]
        return told

    def plan(self) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["plan", *self.command("--workers", "1", "--json")[1:]])
        return json.loads(self.capsys.readouterr().out)

    def held(self) -> dict[str, tuple[CommittedConcept, str]]:
        """What the catalog holds of every concept: where, under which fingerprints, and a digest of all its bytes."""
        digests = concept_digests(self.store)
        return {name: (concept, digests[name]) for name, concept in read_committed(self.store).items()}

    def data(self) -> dict[str, str]:
        """Every data file and a digest of its bytes."""
        files = sorted(self.catalog.glob("re*/*.parquet"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def shop(tmp_path, capsys, monkeypatch, local_ray) -> Iterator[Shop]:
    model = write_tiny_pipeline(tmp_path / "model", "sd2")
    with web_receiver() as receiver:
        monkeypatch.setenv("PERSRES_WEBHOOK", receiver.url)
        monkeypatch.setenv("PERSRES_WEBHOOK_ON", "ended,nothing,failed,stopped,refused,held")
        shop = Shop(tmp_path, receiver, capsys)
        spec = {
            "base_model": str(model),
            "prompts": [PROMPTS[0]],
            "shard_size": 2,
            "training": {"iterations": 2, "batch_size": 1, "pack_size": 2},
            "sampling": {"steps": 2, "batch_size": 2},
            "references": {"min_side": 8},
            "prices": {"device_hour": PRICE, "currency": "EUR"},
        }
        shop.spec.write_text(yaml.safe_dump(spec))
        yield shop


def counts(told: dict[str, Any]) -> tuple[int, int, int, int]:
    return told["committed"], len(told["failed"]), told["current"], told["removed"]


def work(told: dict[str, Any]) -> tuple[int, int]:
    """Concepts trained, and images rendered, as the shards themselves measured."""
    return sum(one["concepts"] for one in told["measured"]), sum(one["images"] for one in told["measured"])


def test_five_nights(shop):
    for name in "abcd":
        shop.stock(name)
    assert "no recent run of this catalog" in shop.plan()["cost"]["missing"]
    first = shop.night()
    assert (counts(first), work(first), first["state"]) == ((4, 0, 0, 0), (4, 4), "ended")
    held, files = shop.held(), shop.data()

    shop.stock("e")  # a new concept
    expected = shop.plan()
    assert (expected["train"], expected["render_only"], len(expected["current"])) == (["e"], [], 4)
    cost = expected["cost"]
    assert (cost["concepts"], cost["images"], cost["measured_concepts"], cost["runs"]) == (1, 1, 4, 1)
    assert cost["device_hours"] > 0 and cost["currency"] == "EUR"
    assert cost["amount"] == pytest.approx(PRICE * cost["device_hours"], abs=1e-4)
    second = shop.night()
    assert (counts(second), work(second)) == ((1, 0, 4, 0), (1, 1))
    held, files = only_these_changed(shop, {"e"}, held, files)

    shop.stock("b", picture=1)  # a changed image
    third = shop.night()
    assert (counts(third), work(third)) == ((1, 0, 4, 0), (1, 1))
    before = held["b"][0]
    held, files = only_these_changed(shop, {"b"}, held, files)
    assert held["b"][0].training_fingerprint != before.training_fingerprint

    shop.stock("c", prompts=PROMPTS)  # an edited prompt
    fourth = shop.night()
    assert (counts(fourth), work(fourth)) == ((1, 0, 4, 0), (0, 2))
    before = held["c"][0]
    held, files = only_these_changed(shop, {"c"}, held, files)
    now = held["c"][0]
    assert now.training_fingerprint == before.training_fingerprint, "a prompt trains nothing"
    assert (now.residual_file, now.residual_row) == (before.residual_file, before.residual_row)

    shop.drop("d")  # a removed concept: kept, and reported
    objects = shop.store.list("")
    fifth = by_crontab(shop)
    assert (counts(fifth), fifth["state"], fifth["cost"]) == ((0, 0, 4, 1), "nothing", None)
    assert shop.store.list("") == objects, "a night without work writes nothing"

    sixth = shop.night()  # no change at all
    assert (counts(sixth), sixth["state"]) == ((0, 0, 4, 1), "nothing")

    seventh = shop.night("--prune")
    assert (counts(seventh), seventh["pruned"], seventh["state"]) == ((0, 0, 4, 1), 1, "ended")
    kept = {name: digest for name, (_, digest) in shop.held().items()}
    assert kept == {name: digest for name, (_, digest) in held.items() if name != "d"}
    assert not verify(shop.store).findings

    eighth = shop.night("--prune")
    assert (counts(eighth), eighth["pruned"], eighth["state"]) == ((0, 0, 4, 0), 0, "nothing")
    the_webhook_heard(shop, [first, second, third, fourth, fifth, sixth, seventh, eighth])


def only_these_changed(
    shop: Shop, names: set[str], held: dict[str, tuple[CommittedConcept, str]], files: dict[str, str]
) -> tuple[dict[str, tuple[CommittedConcept, str]], dict[str, str]]:
    """All else lies where it lay, byte for byte; returns what is there now."""
    now, now_files = shop.held(), shop.data()
    assert {name for name in now if now[name] != held.get(name)} == names
    assert files.items() <= now_files.items(), "no object of an earlier night was touched"
    new = now_files.keys() - files.keys()
    used = {Path(path).name for name in names for path in (now[name][0].residual_file, now[name][0].rendering_file)}
    assert new <= used
    return now, now_files


def by_crontab(shop: Shop) -> dict[str, Any]:
    """A night as cron has it: the written line, run by sh with nothing but HOME and PATH and the environment file."""
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


def the_webhook_heard(shop: Shop, nights: list[dict[str, Any]]) -> None:
    """One message a night, which says what the JSON says."""
    assert len(shop.receiver.messages) == len(nights)
    for message, told in zip(shop.receiver.messages, nights, strict=True):
        for name in ("run_id", "state", "exit_code", "report", "wall_seconds"):
            assert message[name] == told[name], name
        seen = message["counts"]
        assert (seen["committed"], seen["failed"], seen["current"], seen["removed"]) == counts(told)
        assert seen["pruned"] == told["pruned"]
        if told["cost"] is not None:
            assert message["cost"]["device_hours"] == told["cost"]["device_hours"] > 0
            assert message["cost"]["currency"] == "EUR" and "device" in message["text"]
        assert str(shop.catalog) in message["text"]


def test_a_night_with_a_manifest_that_cannot_be_used_is_told_as_refused(shop):
    pq.write_table(pa.table({"concept_id": ["a"]}), shop.manifest)
    told = shop.night()
    assert (told["state"], told["exit_code"], told["run_id"]) == ("refused", 2, None)
    assert told["error"] and told["fix"] and told["problems"][0]["column"]
    (message,) = shop.receiver.messages
    assert message["state"] == "refused" and "Fix" in message["text"] and message["counts"] is None
