"""Stores that are missing, refuse access, are full, or fail while they are used."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support.s3_server import Fault, Request, S3Server
from .bad_input import BadInput
from .sandbox import GOOD_ROW, Sandbox

MakeContext = Callable[[Sandbox, S3Server], Any]


def _submit(sandbox: Sandbox) -> list[str]:
    # With only a failed row, the catalog is written to, but Ray is not started.
    return sandbox.submit(sandbox.json_lines({**GOOD_ROW, "reference_images": []}))


def _at(uri: str) -> Callable[[Sandbox], list[str]]:
    def set_up(sandbox: Sandbox) -> list[str]:
        sandbox.catalog = uri
        return _submit(sandbox)

    return set_up


def _file_in_place_of(name: str) -> Callable[[Sandbox], list[str]]:
    """The catalog's folder is a file."""

    def set_up(sandbox: Sandbox) -> list[str]:
        sandbox.file(name, "no folder")
        return _submit(sandbox)

    return set_up


def _below_a_file(sandbox: Sandbox) -> list[str]:
    sandbox.catalog = str(sandbox.path("mug.png") / "catalog")
    return _submit(sandbox)


def _holding(files: Mapping[str, str | bytes]) -> Callable[[Sandbox], list[str]]:
    """A catalog that holds these objects."""

    def set_up(sandbox: Sandbox) -> list[str]:
        for name, content in files.items():
            path = Path(sandbox.catalog) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return _submit(sandbox)

    return set_up


def _held(sandbox: Sandbox) -> list[str]:
    from persres.pipeline.catalog.lease import hold_lease
    from persres.pipeline.catalog.store import CatalogStore

    with hold_lease(CatalogStore(sandbox.catalog), "20200101T000000Z-000000", "anna@workstation"):
        lease = next((Path(sandbox.catalog) / "lease").iterdir())
        content = json.loads(lease.read_bytes())
    lease.write_text(json.dumps({name: _fresh(name, value) for name, value in content.items()}))
    return _submit(sandbox)


def _fresh(name: str, value: Any) -> Any:
    return time.time() + 3600 if name.startswith("expires") else value


@contextmanager
def _without_permission(sandbox: Sandbox, server: S3Server) -> Iterator[None]:
    """The user may read, but not write, the parent folder of the catalog."""
    sandbox.folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # root ignores permissions
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        sandbox.folder.chmod(0o755)


@contextmanager
def _full(sandbox: Sandbox, server: S3Server) -> Iterator[None]:
    """Limit the size of files to less than the run's first documents have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _rule(decide: Callable[[Request], Fault | None]) -> MakeContext:
    @contextmanager
    def context(sandbox: Sandbox, server: S3Server) -> Iterator[None]:
        server.faults.rule = decide
        try:
            yield
        finally:
            server.faults.rule = lambda request: None

    return context


def _environment(**changes: str) -> MakeContext:
    @contextmanager
    def context(sandbox: Sandbox, server: S3Server) -> Iterator[None]:
        sandbox.environment = {**sandbox.environment, **changes}
        yield

    return context


@contextmanager
def _anonymous(sandbox: Sandbox, server: S3Server) -> Iterator[None]:
    endpoint = server.environment["AWS_ENDPOINT_URL"]
    home = str(sandbox.folder)
    sandbox.environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", "HOME": home}
    yield


def _denied_while_running(request: Request) -> Fault | None:
    return "403" if request.method == "PUT" and "/runs/" in request.path else None


def _references_on_s3(sandbox: Sandbox) -> list[str]:
    return sandbox.submit(sandbox.json_lines({**GOOD_ROW, "reference_images": ["s3://secrets/mug.png"]}))


def _export_without_catalog(sandbox: Sandbox) -> list[str]:
    return ["export", sandbox.catalog, "mug-9"]


_WRONG_RECORD = '{"concepts": "none"}'
_NO_PORT = "http://127.0.0.1:9"


def stores() -> list[BadInput]:
    """Every store of the corpus."""
    on_disk = [
        BadInput("a file at the path of the catalog", _file_in_place_of("catalog"), 1, ("Not a directory",)),
        BadInput(
            "a file above the catalog",
            _below_a_file,
            1,
            ("Not a directory",),
        ),
        BadInput("a folder without write permission", _submit, 1, ("ermission",), context=_without_permission),
        BadInput("a full disk", _submit, 1, ("room",), context=_full),
        BadInput("an unknown scheme", _at("nosuch://catalog"), 2, ("cannot open the catalog",)),
        BadInput(
            "a store whose package is not installed", _at("gs://bucket/catalog"), 2, ("fsspec package is installed",)
        ),
        BadInput("a password in the URI", _at("s3://AKIA:hunter22@bucket/mugs"), 2, ("environment",)),
        BadInput(
            "an invalid commit record",
            _holding({"commits/20261122T190501Z-3fa9c1_train-1_001.json": _WRONG_RECORD}),
            1,
            ("commits/20261122T190501Z-3fa9c1_train-1_001.json",),
        ),
        BadInput("a catalog that another run holds", _held, 4, ("anna@workstation",)),
        BadInput(
            "a report of a missing catalog", lambda sandbox: ["report", sandbox.catalog], 2, ("there is no catalog",)
        ),
        BadInput("an export from a missing catalog", _export_without_catalog, 2, ("there is no catalog at catalog",)),
    ]
    denied = _rule(lambda request: "403")
    busy = _rule(lambda request: "503")
    on_s3 = [
        BadInput("a missing bucket", _at("s3://nowhere/mugs"), 1, ("bucket",), on_s3=True),
        BadInput("a bucket that answers 403", _submit, 1, ("ermission",), on_s3=True, context=denied),
        BadInput(
            "a bucket that always answers 503", _submit, 1, ("can be reached",), on_s3=True, context=busy, slow=True
        ),
        BadInput(
            "a bucket that answers 403 while the run writes",
            _submit,
            1,
            ("ermission",),
            on_s3=True,
            context=_rule(_denied_while_running),
        ),
        BadInput("no credentials", _submit, 1, ("redentials",), on_s3=True, context=_anonymous),
        BadInput(
            "an unreachable server",
            _submit,
            1,
            ("can be reached",),
            on_s3=True,
            context=_environment(AWS_ENDPOINT_URL=_NO_PORT),
            slow=True,
        ),
        BadInput(
            "a manifest in a missing bucket",
            lambda sandbox: sandbox.submit("s3://nowhere/m.parquet"),
            2,
            ("there is no such file",),
            on_s3=True,
        ),
        BadInput(
            "a manifest without read permission",
            lambda sandbox: sandbox.submit("s3://catalogs/m.parquet"),
            2,
            ("permission to read it is denied",),
            on_s3=True,
            context=_rule(lambda request: "403" if request.path.endswith("m.parquet") else None),
        ),
        BadInput(
            "a reference in a bucket that answers 403",
            _references_on_s3,
            3,
            ("cannot be read",),
            on_s3=True,
            context=_rule(lambda request: "403" if "secrets" in request.path else None),
        ),
    ]
    return [*on_disk, *on_s3]
