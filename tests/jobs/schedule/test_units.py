"""Crontab lines and systemd units: arguments arrive unchanged, and no secret is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.jobs.cli.app import main
from persres.jobs.schedule.cron import CronSchedule
from persres.jobs.schedule.units import Refresh, crontab_line, default_name, systemd_units

NIGHTLY = CronSchedule.parse("0 3 * * *")
PROGRAM = ("/usr/bin/persres-batch",)
PRINT_ARGUMENTS = "import json, sys; print(json.dumps(sys.argv[1:]))"

AWKWARD = st.text(st.sampled_from("ab %$\\'\"`;&|*?~#!()<>=,é"), min_size=1, max_size=12).filter(str.isprintable)


def refresh(manifest: str = "s3://bucket/mugs.parquet", catalog: str = "s3://bucket/mugs", **changes) -> Refresh:
    return Refresh("persres-mugs", NIGHTLY, manifest, catalog, **changes)


def test_command_is_submit_with_every_given_option():
    scheduled = refresh(workers=4, address="http://127.0.0.1:8265", device="cuda", prune=True)
    expected = "submit s3://bucket/mugs.parquet --spec run.yaml --catalog s3://bucket/mugs "
    expected += "--address http://127.0.0.1:8265 --device cuda --workers 4 --prune"
    assert scheduled.command(["persres-batch"], "run.yaml") == ["persres-batch", *expected.split()]


@pytest.mark.parametrize(
    ("catalog", "name"),
    [
        ("s3://bucket/Red Mugs/", "persres-red-mugs"),
        ("s3://bucket", "persres-bucket"),
        ("out", "persres-out"),
        (f"s3://bucket/{'long-' * 20}", "persres-long-long-long-long-long"),
    ],
)
def test_refresh_is_named_after_its_catalog(catalog, name):
    assert default_name(catalog) == name
    Refresh(name, NIGHTLY, "s3://bucket/m.parquet", catalog)


@pytest.mark.parametrize("name", ["", "Mugs", "1mugs", "mugs-", "mu gs", "m" * 33, "mugs\n"])
def test_name_that_kubernetes_or_systemd_refuses_is_refused(name):
    with pytest.raises(InvalidInput, match="not a name"):
        Refresh(name, NIGHTLY, "s3://bucket/m.parquet", "s3://bucket/mugs")


@pytest.mark.parametrize(
    "uris",
    [
        {"manifest": "s3://key:hunter2@bucket/m.parquet"},
        {"catalog": "s3://key:hunter2@bucket/mugs"},
        {"manifest": "https://host/m.parquet?signature=hunter2"},
        {"address": "http://user:hunter2@127.0.0.1:8265"},
    ],
)
def test_password_is_neither_written_nor_repeated(uris):
    with pytest.raises(InvalidInput) as refused:
        refresh(**uris)
    assert "hunter2" not in str(refused.value)


def test_line_break_adds_no_second_line_to_a_crontab():
    with pytest.raises(InvalidInput, match="line break"):
        refresh(catalog="/mugs\n* * * * * reboot")


def run_as_cron_does(text: str, home: Path) -> list[str]:
    """Run the command of a crontab's only line; returns its arguments. `logger` is replaced by `cat`."""
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    _, _, _, _, _, command = line.split(" ", 5)
    assert not re.search(r"(?<!\\)%", command)  # cron would end the command there
    command = command.replace(r"\%", "%")
    bin_folder = home / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "logger").write_text("#!/bin/sh\nexec cat\n")
    (bin_folder / "logger").chmod(0o755)
    environment = {"HOME": str(home), "PATH": f"{bin_folder}:/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_crontab_line_runs_the_exact_command_with_the_users_environment(tmp_path):
    awkward = '/pictures/50% off\'s $HOME `id` "x" \\%/mugs'
    scheduled = refresh(f"{awkward}.parquet", awkward, prune=True)
    (tmp_path / ".config/persres").mkdir(parents=True)
    (tmp_path / ".config/persres/environment").write_text("AWS_PROFILE=catalogs\n")
    code = "import json, os, sys; print(json.dumps([os.environ['AWS_PROFILE'], *sys.argv[1:]]))"
    text = crontab_line(scheduled, [sys.executable, "-c", code], "/specs/run.yaml")
    expected = scheduled.command([], "/specs/run.yaml")
    assert run_as_cron_does(text, tmp_path) == ["catalogs", *expected]


def test_crontab_line_runs_without_an_environment_file(tmp_path):
    text = crontab_line(refresh(), [sys.executable, "-c", PRINT_ARGUMENTS], "run.yaml")
    assert run_as_cron_does(text, tmp_path) == refresh().command([], "run.yaml")


def test_crontab_line_too_long_for_cron_is_refused():
    with pytest.raises(InvalidInput, match="cron reads 998"):
        crontab_line(refresh(), PROGRAM, "/" + "deep/" * 200 + "run.yaml")


def parse_exec_start(exec_start: str) -> list[str]:
    """Split ExecStart into arguments as systemd.service(5) describes, for the forms that we write."""
    terms = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', exec_start)
    arguments = [re.sub(r"\\(.)", r"\1", quoted) if quoted else bare.replace("\\\\", "\\") for quoted, bare in terms]
    assert not any(re.search(r"[%$]", re.sub(r"%%|\$\$", "", argument)) for argument in arguments)
    return [argument.replace("%%", "%").replace("$$", "$") for argument in arguments]


@given(AWKWARD, AWKWARD)
def test_systemd_service_passes_arguments_unchanged(manifest, catalog):
    scheduled = refresh(f"/m/{manifest}", f"/c/{catalog}")
    service = systemd_units(scheduled, PROGRAM, "/run.yaml", grace_seconds=120)[".service"]
    (line,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    assert parse_exec_start(line) == scheduled.command(PROGRAM, "/run.yaml")


def test_systemd_service_leaves_time_to_commit_when_stopped():
    service = systemd_units(refresh(), PROGRAM, "/run.yaml", grace_seconds=300)[".service"]
    assert "KillMode=mixed" in service
    assert "TimeoutStopSec=330" in service


def test_day_of_month_or_weekday_is_two_calendar_lines():
    scheduled = Refresh("persres-mugs", CronSchedule.parse("0 3 1 * 1"), "/m", "/c")
    timer = systemd_units(scheduled, PROGRAM, "/run.yaml", grace_seconds=0)[".timer"]
    assert re.findall("OnCalendar=(.*)", timer) == ["*-*-01 03:00:00", "Mon *-*-* 03:00:00"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    scheduled = refresh("/pictures/50% off's $HOME.parquet")
    for end, text in systemd_units(scheduled, [sys.executable], "/run.yaml", grace_seconds=120).items():
        (tmp_path / f"persres-mugs{end}").write_text(text)
    files = sorted(map(str, tmp_path.glob("persres-mugs.*")))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    found = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *files], capture_output=True, text=True, env=environment
    )
    assert (found.returncode, found.stderr) == (0, "")


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed: 3\n")
    return "run.yaml"


def schedule(*options: str, spec: str, cron: str = "0 3 * * *") -> int:
    arguments = ["schedule", "s3://bucket/mugs.parquet", "--spec", spec, "--catalog", "s3://bucket/mugs"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--cron", cron, *options])
    return end.value.code or 0


def test_schedule_prints_the_next_three_times(spec, capsys):
    assert schedule("--as", "crontab", spec=spec) == 0
    shown = capsys.readouterr()
    assert re.search(r"next runs: (\w{3} \d{4}-\d\d-\d\d 03:00, ){2}\w{3} \d{4}-\d\d-\d\d 03:00 \(this", shown.err)
    assert str(Path("run.yaml").absolute()) in shown.out  # cron starts in the home folder


def test_schedule_for_systemd_writes_two_files_of_one_name(spec, capsys):
    assert schedule("--as", "systemd", "--out", "nightly.timer", spec=spec) == 0
    assert "OnCalendar=" in Path("nightly.timer").read_text()
    assert "ExecStart=" in Path("nightly.service").read_text()
    assert "enable --now nightly.timer" in capsys.readouterr().err
    assert schedule("--as", "systemd", "--out", "nightly.timer", spec=spec) == 2
    assert "nightly.service already exists" in capsys.readouterr().err
    assert schedule("--as", "systemd", "--out", "nightly.timer", "--force", spec=spec) == 0


@pytest.mark.parametrize(
    ("options", "cron", "named"),
    [
        (("--as", "raycronjob"), "0 3 * * *", "needs an image"),
        (("--as", "raycronjob", "--image", "x:1", "--address", "http://127.0.0.1:8265"), "0 3 * * *", "--address"),
        (("--as", "raycronjob", "--image", "x:1", "--device", "cpu"), "0 3 * * *", "--device"),
        (("--as", "crontab", "--image", "x:1"), "0 3 * * *", "--image is for"),
        (("--as", "crontab"), "0 3 * *", "4 fields"),
        (("--as", "crontab", "--name", "Mugs"), "0 3 * * *", "not a name"),
    ],
)
def test_schedule_refuses_options_that_do_not_fit_and_names_them(options, cron, named, spec, capsys):
    assert schedule(*options, spec=spec, cron=cron) == 2
    assert named in capsys.readouterr().err


def test_schedule_refuses_an_invalid_spec(spec, capsys):
    Path("run.yaml").write_text("sede: 3\n")
    assert schedule("--as", "crontab", spec=spec) == 2
    assert "'sede'" in capsys.readouterr().err
