"""Fixtures of the commands' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from persres.jobs.cli.app import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("PERSRES_DEBUG", "")  # so that a `--debug` is undone after the test
    for name in ("PERSRES_DEBUG", "PERSRES_WEBHOOK", "PERSRES_WEBHOOK_ON", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        code = end.value.code
        return (int(code) if isinstance(code, int) else 0), *capsys.readouterr()

    return run


@pytest.fixture
def demo_folder(tmp_path: Path) -> Path:
    """A demo of two concepts with a current catalog, as `persres-batch demo` leaves it; the residuals are fake."""
    from persres.pipeline.catalog.store import CatalogStore
    from persres.pipeline.planning.prepare import prepare_run
    from persres.pipeline.spec.run_spec import RunSpec
    from persres.pipeline.spriteworld.demo_catalog import write_demo

    from ..support.catalog_factories import commit, shard_of

    folder = tmp_path / "demo"
    write_demo(folder, concepts=2, references=1)
    planned = prepare_run(str(folder / "manifest.parquet"), RunSpec.load(folder / "run.yaml")).planned
    commit(CatalogStore(str(folder / "manifest-catalog")), shard_of(*planned))
    return folder
