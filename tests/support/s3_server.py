"""moto's S3 server on the loopback interface, with faults that can be switched on.

In a test:           with s3_server() as server: CatalogStore("s3://catalogs/mugs")
In its own process:  python tests/support/s3_server.py --port 5555 --fail-rate 0.1
where `POST /-/faults` with {"fail_rate": 0.1} changes the faults, and `GET /-/requests` returns the counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

Fault = Literal["503", "503 after", "reset", "reset after", "timeout", "403", "truncated"]
"""What goes wrong with a request. "after": it is executed, and its response is lost. "truncated": half of its body is
stored, and the connection breaks."""

RANDOM_FAULTS: tuple[Fault, ...] = ("503", "503 after", "reset", "reset after", "timeout")
BUCKET = "catalogs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-must-not-be-seen",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Request:
    """A request: the method ("PUT"), the path ("/catalogs/mugs/commits/a.json") and the query."""

    method: str
    path: str
    query: str


@dataclass
class Faults:
    """A WSGI application that injects faults into another one.

    Attributes:
        fail_rate: the share of requests with one of `RANDOM_FAULTS`, drawn with `seed`.
        rule: returns the fault of a request; None leaves it to `fail_rate`.
        ignore_conditions: execute conditional writes unconditionally, as some stores do.
        timeout_s: how long a request hangs before its connection is closed.
        requests: all so far.
        met: how many requests had each fault.
    """

    application: Callable[..., Iterable[bytes]]
    fail_rate: float = 0.0
    rule: Callable[[Request], Fault | None] = lambda request: None
    ignore_conditions: bool = False
    timeout_s: float = 2.0
    seed: int = 0
    requests: list[Request] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        if request.path.startswith("/-/"):
            return self._control(request, environ, start_response)
        with self._lock:
            self.requests.append(request)
            fault = self.rule(request) or self._draw_fault()
            if fault:
                self.met[fault] += 1
        if self.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        return self._respond(fault, environ, start_response)

    def _draw_fault(self) -> Fault | None:
        return self._random.choice(RANDOM_FAULTS) if self._random.random() < self.fail_rate else None

    def _respond(
        self, fault: Fault | None, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        match fault:
            case None:
                return self.application(environ, start_response)
            case "403":
                return _error("403 Forbidden", _DENIED, environ, start_response)
            case "503 after" | "reset after":
                list(self.application(environ, lambda *_: None))
            case "truncated":
                half = body[: len(body) // 2]
                for checksum in [name for name in environ if "CHECKSUM" in name or "MD5" in name]:
                    del environ[checksum]
                environ |= {"wsgi.input": BytesIO(half), "CONTENT_LENGTH": str(len(half))}
                list(self.application(environ, lambda *_: None))
            case "timeout":
                time.sleep(self.timeout_s)
        if fault.startswith("503"):
            return _error("503 Slow Down", _SLOW_DOWN, environ, start_response)
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError("an injected fault")

    def _control(
        self, request: Request, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Respond to a request that is meant for this class, not for the store."""
        if request.path == "/-/faults":
            changes = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            for name in ("fail_rate", "timeout_s", "ignore_conditions"):
                setattr(self, name, changes.get(name, getattr(self, name)))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"requests": len(self.requests), "met": self.met}).encode()]


def _error(status: str, body: bytes, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    port: int
    faults: Faults

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client's process: address and credentials."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}


@contextmanager
def s3_server(port: int = 0, **faults: Any) -> Iterator[S3Server]:
    """Serve an empty bucket named `BUCKET` from a thread; `faults` are attributes of `Faults`."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # it logs every request, and every lost connection
    os.environ.setdefault("MOTO_ALLOW_NONEXISTENT_REGION", "true")
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    application = Faults(DomainDispatcherApplication(create_backend_app), **faults)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.reset()
    backend.create_bucket(BUCKET, "us-east-1")
    server = make_server("127.0.0.1", port, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="s3-server", daemon=True)
    thread.start()
    try:
        yield S3Server(server.port, application)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--fail-rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with s3_server(arguments.port, fail_rate=arguments.fail_rate, seed=arguments.seed) as server:
        print(json.dumps(server.environment), flush=True)
        sys.stdin.read()  # until the parent ends


if __name__ == "__main__":
    _main()
