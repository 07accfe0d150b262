"""The folder for Ray's sessions leaves room for the paths of sockets."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cluster import session_folder as module
from persres.jobs.cluster.session_folder import check_session_folder, session_folder


def test_usual_folder_is_left_to_ray(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    with session_folder() as folder:
        assert folder is None


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_long_folder_is_replaced_by_a_short_private_one(monkeypatch, tmp_path, variable):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / ("a-rather-long-folder-name/" * 4)))
    with session_folder() as folder:
        assert folder is not None and stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        path = Path(folder + f"/session_2026-11-25_10-50-27_123456_{os.getpid()}/sockets/plasma_store")
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    assert not os.path.exists(folder)


def test_without_a_short_folder_the_user_is_told_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("ü" * 50)))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(module, "_SHORT_FOLDERS", (str(tmp_path / "none"),))
    with pytest.raises(InvalidInput, match=r"too long a path.*Fix: set TMPDIR to a shorter folder"):
        check_session_folder()
