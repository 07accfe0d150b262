"""An HTTP server on the loopback interface that receives webhook messages and gives scripted responses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .http_server import QuietHandler, serving


@dataclass
class WebhookReceiver:
    """The requests received, and the responses to the next ones.

    Attributes:
        messages: the parsed bodies of accepted POST requests.
        requests: (method, path) of every request.
        responses: each a status, a (status, location), or seconds as a float, after which the connection is closed
            without a response. When none is left: 200.
    """

    url: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    responses: list[int | float | tuple[int, str]] = field(default_factory=list)


@contextmanager
def webhook_receiver(responses: Sequence[int | float | tuple[int, str]] = ()) -> Iterator[WebhookReceiver]:
    """Serve while the block lasts, at an address with a secret path."""
    receiver = WebhookReceiver(responses=list(responses))

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            receiver.requests.append(("POST", self.path))
            response = receiver.responses.pop(0) if receiver.responses else 200
            if isinstance(response, float):
                time.sleep(response)
                return
            status, location = response if isinstance(response, tuple) else (response, "")
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

    with serving(Handler) as url:
        receiver.url = f"{url}/services/hunter2"
        yield receiver
