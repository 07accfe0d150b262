"""The command `init`."""

from __future__ import annotations

from persres.pipeline.spec.run_spec import RunSpec


def test_init_writes_the_default_settings_and_replaces_nothing(command, tmp_path):
    code, out, _ = command("init", tmp_path / "run.yaml")
    assert code == 0 and "validate" in out
    assert RunSpec.load(tmp_path / "run.yaml") == RunSpec()
    code, _, err = command("init", tmp_path / "run.yaml")
    assert code == 2 and "--force" in err
    assert command("init", tmp_path / "run.yaml", "--force")[0] == 0
