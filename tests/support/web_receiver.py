"""A real HTTP server on the loopback interface that takes messages and answers as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What has arrived, and what is answered to the next requests: a status, a (status, location), or seconds of
    silence as a float. When none is left, 200."""

    url: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    answers: list[int | float | tuple[int, str]] = field(default_factory=list)


@contextmanager
def web_receiver(answers: Sequence[int | float | tuple[int, str]] = ()) -> Iterator[Receiver]:
    """A server for the length of a test; its address has a secret path, as those of chats have."""
    receiver = Receiver(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            receiver.requests.append(("POST", self.path))
            answer = receiver.answers.pop(0) if receiver.answers else 200
            if isinstance(answer, float):
                time.sleep(answer)
                return
            status, location = answer if isinstance(answer, tuple) else (answer, "")
            if 200 <= status < 300:
                receiver.messages.append(json.loads(body))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            receiver.requests.append(("GET", self.path))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}/services/hunter2"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
