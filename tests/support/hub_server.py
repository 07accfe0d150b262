"""A server that speaks the part of the Hugging Face Hub's protocol which `huggingface_hub` needs to fetch a model.

In a test:               with hub_server() as hub: hub.push("team/drawings", folder)
As a client's process:   HF_ENDPOINT=hub.endpoint HF_HUB_OFFLINE=0
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Commit:
    """A repository's files at one commit, by path."""

    sha: str
    files: dict[str, bytes]


@dataclass
class Hub:
    """What the server has, and what it was asked.

    Attributes:
        endpoint: the address for HF_ENDPOINT.
        gated: repositories whose files nobody may have.
        requests: (method, path) of every request, in order.
        before_file: called with a file's path before it is sent; may wait, or raise to break the connection.
    """

    endpoint: str = ""
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    before_file: Callable[[str], None] = lambda path: None
    _commits: dict[str, list[Commit]] = field(default_factory=dict)

    def push(self, repository: str, folder: Path) -> str:
        """Make a folder's files the newest commit of a repository's main branch; returns its name."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        told = json.dumps([repository, sorted((name, _sha256(data)) for name, data in files.items())])
        sha = hashlib.sha1(told.encode()).hexdigest()
        self._commits.setdefault(repository, []).append(Commit(sha, files))
        return sha

    def commit(self, repository: str, revision: str) -> Commit | None:
        commits = self._commits[repository]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit.sha == revision), None)

    def has(self, repository: str) -> bool:
        return repository in self._commits

    def files_sent(self) -> Counter[str]:
        """How often each file was asked for, by its path in the repository."""
        sent = (path.split("/resolve/")[1].split("/", 1)[1] for method, path in self.requests if _is_file(method, path))
        return Counter(sent)


def _is_file(method: str, path: str) -> bool:
    return method == "GET" and "/resolve/" in path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        if not self.hub.has(repository):
            return self._refuse(404, "RepoNotFound")
        action, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if action == "revision":
            siblings = [{"rfilename": name} for name in commit.files]
            self._tell({"id": repository, "sha": commit.sha, "siblings": siblings})
        elif action == "tree":
            self._tell([_entry(name, data) for name, data in commit.files.items()])
        elif repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        else:
            self._send_file(commit, "/".join(rest[2:]))

    def _send_file(self, commit: Commit, name: str) -> None:
        data = commit.files.get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_sha256(data)}"')
        self.send_header("X-Repo-Commit", commit.sha)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            half = start + (len(data) - start) // 2
            self.wfile.write(data[start:half])
            self.hub.before_file(name)
            self.wfile.write(data[half:])

    def _tell(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub on the loopback interface, from threads."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="hub-server", daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
