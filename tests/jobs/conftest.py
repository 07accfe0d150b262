"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from persres.jobs.cli.app import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command line; returns (exit code, standard output, standard error)."""
    monkeypatch.setenv("PERSRES_DEBUG", "")  # so that what `--debug` sets is taken back after the test
    monkeypatch.delenv("PERSRES_DEBUG")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        code = end.value.code
        return (code if isinstance(code, int) else 0), *capsys.readouterr()

    return run
