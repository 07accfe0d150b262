"""Images from a real web server with faults: each fault is named, within the time limits."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from PIL import Image

from persres.core.errors import ConceptError, ConceptFailure
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.references.fetch import ReferenceFetcher
from persres.pipeline.references.images import ReferenceDigests, Unreachable
from persres.pipeline.references.settings import ReferenceSettings

from ...support.image_host import ImageHost, Request, image_host


def png(side: int = 128) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with image_host(png()) as host:
        yield host


def fetch(method: str, uri: str, **settings: object) -> bytes | str:
    quick = {"retry_seconds": 0.2, "connect_seconds": 2, "read_seconds": 1, "image_seconds": 2, **settings}
    with ReferenceFetcher(ReferenceSettings.model_validate(quick)) as fetcher:
        return getattr(fetcher, method)(ReferenceSource(uri))


def status(number: int) -> Callable[[Request], None]:
    return lambda request: request.send_status(number)


@pytest.mark.parametrize("method", ["read", "digest"])
@pytest.mark.parametrize(
    ("number", "fix", "is_retried"),
    [
        (401, "login", False),
        (403, "expired", False),
        (404, "nothing at this address", False),
        (410, "removed", False),
        (429, "limits requests", True),
        (500, "fault of its own", True),
        (503, "fault of its own", True),
    ],
)
def test_status_is_named_with_its_fix_and_retried_if_transient(host, method, number, fix, is_retried):
    host.answers["/a.png"] = status(number)
    with pytest.raises(ConceptError, match=f"HTTP {number}") as caught:
        fetch(method, f"{host.address}/a.png?signature=secret")
    assert fix in str(caught.value) and "secret" not in str(caught.value)
    assert (host.methods("/a.png").count("GET" if method == "read" else "HEAD") > 1) == is_retried


def test_connection_errors_are_distinguished(host):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"
        with pytest.raises(ConceptError, match="connection refused"):
            fetch("read", refused)
    with pytest.raises(ConceptError, match="unknown host"):
        fetch("read", "http://no-such-host.invalid/a.png")
    with pytest.raises(ConceptError, match="TLS"):
        fetch("read", host.address.replace("http:", "https:") + "/a.png")


def test_transient_error_within_the_retry_time_is_retried(host):
    tries = count()
    host.answers["/a.png"] = lambda request: request.send_picture() if next(tries) >= 2 else request.send_status(503)
    assert fetch("read", f"{host.address}/a.png", retry_seconds=5) == host.picture
    tries = count()
    host.answers["/b.png"] = lambda request: request.send_picture() if next(tries) else request.send_cut()
    assert fetch("read", f"{host.address}/b.png", retry_seconds=5) == host.picture


def test_connection_that_breaks_every_time_is_named(host):
    host.answers["/a.png"] = Request.send_cut
    with pytest.raises(ConceptError, match="connection broke"):
        fetch("read", f"{host.address}/a.png")


def test_stream_without_length_is_read_to_its_end(host):
    host.answers["/a.png"] = Request.send_chunked
    assert len(host.picture) > 40_000
    assert fetch("read", f"{host.address}/a.png") == host.picture
    assert str(fetch("digest", f"{host.address}/a.png")).startswith("sha256:")
    with pytest.raises(ConceptError, match="more than 30000 bytes"):
        fetch("read", f"{host.address}/a.png", max_bytes=30_000)


def test_slow_host_takes_no_longer_than_the_time_for_an_image(host):
    host.answers["/a.png"] = Request.send_dripping
    started = time.monotonic()
    with pytest.raises(ConceptError, match="no answer within"):
        fetch("read", f"{host.address}/a.png", image_seconds=0.5, retry_seconds=0)
    assert time.monotonic() - started < 10


def test_dead_host_is_given_up_after_its_budget(host):
    host.answers["/a.png"] = status(503)
    settings = ReferenceSettings(retry_seconds=0.3, host_seconds=0.2)
    with ReferenceFetcher(settings) as fetcher:
        with pytest.raises(ConceptError, match="HTTP 503"):
            fetcher.read(ReferenceSource(f"{host.address}/a.png"))
        requests = len(host.requests)
        with pytest.raises(ConceptError, match="is not asked any more"):
            fetcher.read(ReferenceSource(f"{host.address}/b.png"))
    assert len(host.requests) == requests


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/secret.png", "http://localhost:{port}/x", "http://[::1]/x", "http://10.0.0.1/x",
               "http://169.254.169.254/latest/meta-data", "/relative.png", "http://[::ffff:127.0.0.1]/x"]
)  # fmt: skip
def test_redirect_reaches_no_address_inside_a_network(host, target):
    location = target.format(port=host.address.rpartition(":")[2])
    host.answers["/a.png"] = lambda request: request.send_status(302, Location=location)
    with pytest.raises(ConceptError, match=r"redirects to .*inside a network.*private_redirects"):
        fetch("read", f"{host.address}/a.png")
    assert host.methods("/secret.png") == []


def test_redirect_is_followed_where_the_setting_allows_it(host):
    host.answers["/a.png"] = lambda request: request.send_status(302, Location="/b.png")
    assert fetch("read", f"{host.address}/a.png", private_redirects=True) == host.picture
    host.answers["/b.png"] = lambda request: request.send_status(302, Location="/a.png")
    with pytest.raises(ConceptError, match="redirects more than 5 times"):
        fetch("read", f"{host.address}/a.png", private_redirects=True)


@pytest.mark.parametrize("location", ["ftp://host/a.png", "file:///etc/passwd", ""])
def test_redirect_obeys_the_allowed_schemes(host, location):
    host.answers["/a.png"] = lambda request: request.send_status(302, Location=location)
    with pytest.raises(ConceptError, match="redirects"):
        fetch("read", f"{host.address}/a.png")


def test_address_is_sent_as_it_was_written(host):
    path = "/a%2Fb%7e.png?sig=a%2fb%2B%20c&x=%C3%A4"
    assert fetch("read", host.address + path) == host.picture
    assert host.requests[-1] == ("GET", path)


def test_etag_that_changes_every_time_falls_back_to_content(host):
    tags = count()
    host.answers["/a.png"] = lambda request: request.send_picture(ETag=f'"{next(tags)}"')
    host.answers["/b.png"] = lambda request: request.send_picture(ETag='"steady"')
    assert str(fetch("digest", f"{host.address}/a.png")).startswith("sha256:")
    assert str(fetch("digest", f"{host.address}/b.png")).startswith(f"tag:steady:{len(host.picture)}:")


def test_tag_counts_for_its_own_address_alone(host):
    """Servers make tags of an image's time and size, which two images may share."""
    for path in ("/a.png", "/b.png"):
        host.answers[path] = lambda request: request.send_picture(ETag='"5f3-61a"')

    def digest(address: str) -> str:
        return str(fetch("digest", host.address + address))

    assert digest("/a.png") == digest("/a.png") != digest("/b.png")
    assert digest("/a.png?id=1") != digest("/a.png?id=2")
    one, later = "X-Amz-Date=1&X-Amz-Signature=2", "X-Amz-Date=3&X-Amz-Signature=4"
    assert digest(f"/a.png?id=1&{one}") == digest(f"/a.png?id=1&{later}") != digest(f"/a.png?id=2&{one}")
    assert digest("/a.png?sv=1&se=2&sig=x%2F") == digest("/a.png?sv=1&se=3&sig=y%2F") == digest("/a.png")


def test_tags_of_web_servers_are_confirmed_only_where_asked(host):
    tags = count()
    host.answers["/changing.png"] = lambda request: request.send_picture(ETag=f'"{next(tags)}"')
    host.answers["/steady.png"] = lambda request: request.send_picture(ETag='"x"')
    rows = [row_of(f"{host.address}/{name}.png", name) for name in ("changing", "steady")]

    with ReferenceDigests(ReferenceSettings(retry_seconds=0.2)) as digests:
        found = [one for one in digests.of_rows(rows) if isinstance(one, tuple)]
        assert host.methods("/steady.png") == ["HEAD"]
        assert [digests.are_doubtful(*one) for one in zip(rows, found, strict=True)] == [True, True]
        changing, steady = digests.confirmed(zip(rows, found, strict=True))
        assert isinstance(changing, tuple) and changing[0].startswith("sha256:")
        assert steady == found[1]
        assert [digests.are_doubtful(rows[1], found[1])] == [False]
        assert list(digests.of_rows(rows)) == [changing, steady], "what was confirmed stays"


@pytest.mark.parametrize("number", [403, 404, 410, 503])
def test_only_transient_errors_make_a_row_unreachable(host, number):
    host.answers["/a.png"] = status(number)
    host.answers["/gone.png"] = status(404)
    with ReferenceDigests(ReferenceSettings(retry_seconds=0)) as digests:
        one, both = digests.of_rows(
            [row_of(f"{host.address}/a.png"), row_of(f"{host.address}/a.png", "b", f"{host.address}/gone.png")]
        )
    assert isinstance(one, Unreachable) == (number == 503)
    assert isinstance(both, ConceptFailure), "what is gone is gone, whatever else cannot be reached"


def row_of(uri: str, concept_id: str = "a", *more: str) -> ManifestRow:
    return ManifestRow(0, concept_id, "mug", tuple(map(ReferenceSource, (uri, *more))), ())


def test_server_without_head_gets_a_get_request(host):
    host.answers["/a.png"] = lambda request: (
        request.send_status(405) if request.command == "HEAD" else request.send_picture(ETag='"x"')
    )
    assert str(fetch("digest", f"{host.address}/a.png")).startswith(f"tag:x:{len(host.picture)}:")


def test_password_in_an_address_is_used_and_not_shown(host):
    address = host.address.replace("http://", "http://ana:pa55word@")
    assert fetch("read", f"{address}/a.png") == host.picture
    host.answers["/b.png"] = status(403)
    with pytest.raises(ConceptError) as caught:
        fetch("read", f"{address}/b.png")
    assert "pa55word" not in str(caught.value)


def test_letters_that_are_not_ascii_are_encoded(host):
    assert fetch("read", f"{host.address}/größe a.png?x=ä") == host.picture
    assert host.requests[-1] == ("GET", "/gr%C3%B6%C3%9Fe%20a.png?x=%C3%A4")
    assert fetch("read", f"{host.address}/a.png?next=http://host/b%20c d") == host.picture
    assert host.requests[-1] == ("GET", "/a.png?next=http://host/b%20c%20d")
