"""The bench command: its table, its JSON file, its refusals."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from rich.console import Console

from persres.jobs.cli.app import main
from persres.jobs.cli.bench import bench_tables, measuring
from persres.pipeline.benchmark.bench_result import BenchResult, Measurement, compare

from ...support.tiny_models import write_tiny_pipeline


@pytest.fixture(autouse=True)
def no_debug(monkeypatch):
    monkeypatch.delenv("PERSRES_DEBUG", raising=False)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", *map(str, arguments)])
    return int(end.value.code or 0)


def test_table_shows_seconds_speed_ratio_memory_and_share():
    measured = [
        Measurement("peer", "concept", 36.0, 9e12, 2**30),
        Measurement("packed_8", "concept", 9.0, 9e12, None),
        Measurement("render_lag", "image", 0.25, 1e12, 2**20),
    ]
    machine = {
        "model": "sd1", "device": "a GPU", "threads": 1, "dtype": "bfloat16", "matmul_flops_per_second": 1e13,
    }  # fmt: skip
    console = Console(width=80, record=True)
    for part in bench_tables(BenchResult(machine, compare(measured, 1e13), ("a note",))):
        console.print(part)
    lines = console.export_text().splitlines()
    assert lines[0] == "sd1 on a GPU, 1 CPU thread, bfloat16; peak: 10 TFLOP/s" and lines[-1] == "a note"
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if re.search("[│┃]", line)]
    assert cells == [
        ["", "s/concept", "concepts/h", "× peer", "peak MiB", "share of peak"],
        ["peer", "36", "100", "1.00", "1,024", "2.5%"],
        ["packed_8", "9", "400", "4.00", "", "10.0%"],
        ["", "s/image", "images/s", "× peer", "peak MiB", "share of peak"],
        ["render_lag", "0.25", "4", "", "1", "40.0%"],
    ]


def test_progress_off_a_terminal_is_a_line_for_each_row():
    console = Console(record=True, force_terminal=False)
    with measuring(console) as on_progress:
        on_progress("measuring peer", 1, 10)
    assert console.export_text() == "measuring peer (1 of 10 done)\n"


def test_bench_measures_a_folder_and_writes_json(tmp_path, capsys):
    model = write_tiny_pipeline(tmp_path / "model", "sdxl")
    spec = tmp_path / "run.yaml"
    training = {"iterations": 4, "batch_size": 2}
    spec.write_text(yaml.safe_dump({"base_model": str(model), "training": training, "sampling": {"steps": 2}}))
    chosen = ["--model", model, "--spec", spec, "--iterations", 2, "--rounds", 1, "--threads", 1, "--max-pack", 2]
    assert run(*chosen, "--row", "packed_2", "--json", tmp_path / "bench.json") == 0
    plain = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in plain["rows"]] == ["peer", "packed_2"]
    shown = capsys.readouterr()
    assert "packed_2" in shown.out and "scaled to 4 iterations" in shown.out
    assert "measuring packed_2" in shown.err
