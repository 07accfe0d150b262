"""The code that travels with a job: it can be imported, and its digest identifies it."""

from __future__ import annotations

import subprocess
import sys

from persres.jobs.cluster.code import code_digest, copy_floors, installed_versions


def test_copied_code_is_an_importable_folder(tmp_path):
    package = copy_floors(tmp_path)
    assert not list(package.rglob("__pycache__"))
    code = "import persres.jobs.cli.app as cli; print(cli.__file__)"
    # -S: without site-packages' editable install of this very package, so that only the copy can be found
    search = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, *{[path for path in sys.path if 'site-packages' in path]!r}]"
    )
    done = subprocess.run([sys.executable, "-S", "-c", f"{search}\n{code}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(package / "jobs" / "cli" / "app.py"), done.stderr


def test_code_digest_of_a_copy_is_the_originals_until_a_line_differs(tmp_path):
    package = copy_floors(tmp_path)
    (package / "jobs" / "__pycache__").mkdir()
    (package / "jobs" / "notes.txt").write_text("no code")
    assert code_digest(package) == code_digest() != ""
    file = package / "jobs" / "cli" / "app.py"
    file.write_text(file.read_text() + "\n")
    changed = code_digest(package)
    assert changed != code_digest()
    file.rename(package / "jobs" / "cli2.py")
    assert code_digest(package) != changed, "names count"


def test_version_of_shipped_code_is_the_submitting_machines(monkeypatch):
    assert installed_versions()["code"] == code_digest() and installed_versions()["torch"]
    monkeypatch.setenv("PERSRES_VERSION", "9.8.7")
    assert installed_versions()["persres-batch"] == "9.8.7"
