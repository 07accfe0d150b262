"""A web server of one image on the loopback interface, which misbehaves for some paths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .http_server import QuietHandler, serving

Answer = Callable[["Request"], None]


class Request(QuietHandler):
    """A request: the response is that of `host.answers` for its path, or else the image."""

    protocol_version = "HTTP/1.1"
    host: ImageHost

    def do_GET(self) -> None:
        self.host.requests.append((self.command, self.path))
        answer = self.host.answers.get(self.path.split("?")[0])
        if answer is None:
            self.send_picture()
        else:
            answer(self)

    do_HEAD = do_GET

    def send_picture(self, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.host.picture)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.host.picture)

    def send_status(self, status: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(self.host.picture), 1000):
                chunk = self.host.picture[start : start + 1000]
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

    def send_cut(self) -> None:
        """Send half of the image, then close the connection."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.host.picture)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.host.picture[: len(self.host.picture) // 2])
        self.close_connection = True

    def send_dripping(self) -> None:
        """Send a byte every 50 ms until the client closes the connection."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while self.command == "GET":
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass


@dataclass
class ImageHost:
    """The server's state.

    Attributes:
        answers: by path, what sends the response; other paths get the image.
        requests: (method, path with query) of every request, in order.
    """

    picture: bytes
    address: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def methods(self, path: str) -> list[str]:
        return [method for method, requested in self.requests if requested.split("?")[0] == path]


@contextmanager
def image_host(picture: bytes) -> Iterator[ImageHost]:
    """Serve while the block lasts."""
    host = ImageHost(picture)
    with serving(type("Bound", (Request,), {"host": host})) as host.address:
        yield host
