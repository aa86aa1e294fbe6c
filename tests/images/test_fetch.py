"""Fetching: from allowed hosts at public addresses, within bounds, redirects included."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import pytest
import trustme

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.addresses import refusal
from vlmbatch.images.fetch import FetchLimits, ImageFetcher
from vlmbatch.images.fetch_budget import FetchBudget, LargerError
from vlmbatch.images.loading.shared_fetches import SharedFetches
from vlmbatch.images.loading.url_loader import UrlLoader
from vlmbatch.images.urls import AllowedDomains
from vlmbatch.types import ImageInput, ImageRef

HERE = "127.0.0.1"
IMAGE = bytes(range(256)) * 20
LARGE = bytes(2**22)
DOMAINS = AllowedDomains.of(["images.example.org", "other.example.org", "*.cdn.example"])
ADDRESSES = {
    "images.example.org": [HERE],
    "other.example.org": [HERE],
    "a.cdn.example": [HERE],
    "inside.cdn.example": ["10.0.0.1"],
    "mixed.cdn.example": [HERE, "169.254.169.254"],
    "mapped.cdn.example": ["::ffff:192.168.0.1"],
    "empty.cdn.example": [],
    "two.cdn.example": ["127.0.0.2", HERE],
    "dead.cdn.example": ["127.0.0.2", "127.0.0.3"],
}


class Handler(BaseHTTPRequestHandler):
    """Does what the path says, and notes the request."""

    requests: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        type(self).requests.append((self.path, self.headers["Host"]))
        action, _, rest = self.path.lstrip("/").partition("/")
        with contextlib.suppress(ConnectionError):
            getattr(self, f"on_{action}")(rest)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def on_image(self, rest: str) -> None:
        assert self.headers["Accept-Encoding"] == "identity"
        self.answer(body=IMAGE)

    def on_large(self, rest: str) -> None:
        self.answer(body=LARGE)

    def on_range(self, rest: str) -> None:
        if rest == "empty":
            self.answer(416, Content_Range="bytes */0")
            return
        first, last = self.headers.get("Range", "bytes=0-9")[len("bytes=") :].split("-")
        body = IMAGE[int(first) : int(last) + 1]
        self.answer(206, body, Content_Range=f"bytes {first}-{last}/{len(IMAGE)}")

    def on_to(self, target: str) -> None:
        scheme, _, rest = target.partition("/")
        self.answer(302, Location=f"{scheme}://{rest}" if rest else scheme)

    def on_relative(self, rest: str) -> None:
        self.answer(307, Location="/image")

    def on_loop(self, rest: str) -> None:
        self.answer(301, Location="/loop")

    def on_status(self, rest: str) -> None:
        self.answer(int(rest), b"no")

    def on_packed(self, rest: str) -> None:
        self.answer(body=IMAGE, Content_Encoding="gzip")

    def on_announced(self, rest: str) -> None:
        self.answer(body=b"", Content_Length="999999999")

    def on_endless(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(IMAGE)

    def on_untold(self, rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(IMAGE)

    def on_short(self, rest: str) -> None:
        self.answer(body=b"abc", Content_Length="10")

    def on_drip(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(200):
            self.wfile.write(b"x")
            time.sleep(0.02)

    def on_junk(self, rest: str) -> None:
        self.wfile.write(b"\x00\x01 not http\r\n\r\n")

    def on_close(self, rest: str) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    handler = type("Own", (Handler,), {"requests": []})
    server = ThreadingHTTPServer((HERE, 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with serving() as running:
        yield running


def resolve(host: str, port: int) -> list[str]:
    if host not in ADDRESSES:
        raise socket.gaierror("no such host")
    return ADDRESSES[host]


def here_is_public(address: str) -> str | None:
    return None if address in (HERE, "127.0.0.2", "127.0.0.3") else refusal(address)


PATIENT = FetchLimits(timeout_s=10)


def fetcher(limits: FetchLimits = PATIENT, **options: object) -> ImageFetcher:
    options = {"resolve": resolve, "refusal": here_is_public, **options}
    return ImageFetcher(DOMAINS, limits, **options)  # type: ignore[arg-type]


@pytest.fixture
def url(server: ThreadingHTTPServer) -> Callable[..., str]:
    server.RequestHandlerClass.requests.clear()  # type: ignore[attr-defined]
    return lambda path, host="images.example.org": f"http://{host}:{server.server_port}/{path}"


def requests_of(server: ThreadingHTTPServer) -> list[str]:
    return [path for path, _ in server.RequestHandlerClass.requests]  # type: ignore[attr-defined]


def error_of(url: str, fetcher: ImageFetcher) -> tuple[ErrorCode, str]:
    with pytest.raises(RowError) as caught:
        fetcher.fetch(url)
    assert len(caught.value.message) < 500
    return caught.value.code, caught.value.message


def test_the_content_comes_with_the_right_host_and_path(server, url):
    assert fetcher().fetch(url("image/ä b".replace(" ", "%20") + "?q=%41&r=1#f")) == IMAGE
    [(path, host)] = server.RequestHandlerClass.requests
    assert path == "/image/%C3%A4%20b?q=%41&r=1"
    assert host == f"images.example.org:{server.server_port}"


def test_the_content_is_held_once(url):
    tracemalloc.start()
    try:
        assert fetcher().fetch(url("large")) == LARGE
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(LARGE)


def test_redirects_are_followed_within_the_allowed_hosts(server, url):
    assert fetcher().fetch(url("relative")) == IMAGE
    assert fetcher().fetch(url("to/" + url("image", "a.cdn.example").replace("://", "/"))) == IMAGE


def test_loopback_is_refused_by_default(server, url):
    code, message = error_of(url("image"), ImageFetcher(DOMAINS, resolve=resolve))
    assert code is ErrorCode.IMAGE_FORBIDDEN
    assert "loopback address 127.0.0.1" in message
    assert requests_of(server) == []


@pytest.mark.parametrize("name", ["inside", "mixed", "mapped"])
def test_no_address_that_is_not_public_is_connected_to(server, url, name):
    """One such address among public ones is enough."""
    direct = url("image", f"{name}.cdn.example")
    for target in (direct, url("to/" + direct.replace("://", "/"))):
        code, message = error_of(target, fetcher())
        assert code is ErrorCode.IMAGE_FORBIDDEN
        assert "public addresses only" in message
    assert [path for path in requests_of(server) if path == "/image"] == []


def test_a_redirect_to_another_host_is_refused(server, url):
    for target in ("http/evil.example/image", "https/images.example.org.evil.example/image"):
        assert error_of(url(f"to/{target}"), fetcher())[0] is ErrorCode.IMAGE_FORBIDDEN
    for target in ("file//etc/passwd", "ftp/images.example.org/x", "http/u:p@images.example.org/"):
        assert error_of(url(f"to/{target}"), fetcher())[0] is ErrorCode.IMAGE_FETCH_FAILED


def test_the_address_that_was_checked_is_the_one_connected_to(server, url):
    """A name server that answers otherwise the second time gains nothing."""
    answers = iter([[HERE], ["10.0.0.1"]])
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    assert fetcher(resolve=rebinding).fetch(url("image")) == IMAGE
    assert asked == ["images.example.org"]


def test_every_redirect_is_resolved_and_checked_anew(server, url):
    answers = iter([[HERE], ["10.0.0.1"]])
    code, _ = error_of(url("relative"), fetcher(resolve=lambda host, port: next(answers)))
    assert code is ErrorCode.IMAGE_FORBIDDEN
    assert requests_of(server) == ["/relative"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("status/404", ErrorCode.IMAGE_FETCH_FAILED, "status 404"),
        ("status/500", ErrorCode.IMAGE_FETCH_FAILED, "status 500"),
        ("loop", ErrorCode.IMAGE_FETCH_FAILED, "more than 3 redirects"),
        ("packed", ErrorCode.IMAGE_FETCH_FAILED, "gzip"),
        ("announced", ErrorCode.IMAGE_TOO_LARGE, "limit of 6000 bytes"),
        ("endless", ErrorCode.IMAGE_TOO_LARGE, "limit of 6000 bytes"),
        ("short", ErrorCode.IMAGE_FETCH_FAILED, ""),
        ("drip", ErrorCode.IMAGE_FETCH_FAILED, "longer than 0.3 seconds"),
        ("junk", ErrorCode.IMAGE_FETCH_FAILED, ""),
        ("close", ErrorCode.IMAGE_FETCH_FAILED, ""),
    ],
)
def test_what_a_server_may_do(url, path, code, message):
    limits = FetchLimits(max_bytes=6000, timeout_s=0.3 if path == "drip" else 10)
    found, text = error_of(url(path), fetcher(limits))
    assert found is code
    assert message in text
    assert "images.example.org" in text


def test_the_start_alone(url):
    """Of a server that knows ranges, and of one that sends all."""
    assert fetcher().fetch_start(url("image"), 100) == IMAGE[:100]
    assert fetcher().fetch_start(url("image"), 10**5) == IMAGE
    assert fetcher().fetch_start(url("endless"), 100) == IMAGE[:100]
    assert fetcher().fetch_start(url("range"), 100) == IMAGE[:100]
    assert fetcher().fetch_start(url("range/empty"), 100) == b""
    small = fetcher(FetchLimits(max_bytes=len(IMAGE) - 1))
    for path in ("range", "announced"):
        with pytest.raises(RowError) as caught:
            small.fetch_start(url(path), 100)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    with pytest.raises(RowError, match="status 206"):
        fetcher().fetch(url("range"))


def test_what_it_takes_is_reserved_as_soon_as_that_is_known(url):
    """By a length that is told, or as bytes come; where there is no room it is not read on."""
    for path, size in (("image", len(IMAGE)), ("untold", 2 * len(IMAGE))):
        room = FetchBudget(3 * len(IMAGE)).reserve()
        assert room.num_bytes < len(IMAGE)
        assert fetcher().fetch(url(path), room) == IMAGE
        assert room.num_bytes == size
    for path, asked in (("image", len(IMAGE)), ("announced", 999_999_999), ("endless", 2)):
        budget = FetchBudget(2 * len(IMAGE))
        room = budget.reserve()
        budget.take_back(2 * len(IMAGE) - room.num_bytes)
        with pytest.raises(LargerError) as caught:
            fetcher(FetchLimits(max_bytes=10**9, timeout_s=10)).fetch(url(path), room)
        assert asked <= caught.value.num_bytes
    with pytest.raises(RowError, match="limit of 6000 bytes"):
        fetcher(FetchLimits(max_bytes=6000, timeout_s=10)).fetch(url("announced"), room)


def test_loops_end(server, url):
    error_of(url("loop"), fetcher(FetchLimits(max_redirects=5, timeout_s=10)))
    assert requests_of(server) == ["/loop"] * 6


def test_hosts_that_are_not_there(server, url):
    for name in ("none", "empty", "a..b"):
        code, message = error_of(url("image", f"{name}.cdn.example"), fetcher())
        assert code is ErrorCode.IMAGE_FETCH_FAILED
        assert f"{name}.cdn.example" in message
    with socket.socket() as unused:
        unused.bind((HERE, 0))
        port = unused.getsockname()[1]
        code, _ = error_of(f"http://images.example.org:{port}/", fetcher())
        assert code is ErrorCode.IMAGE_FETCH_FAILED


def test_the_next_address_is_tried_when_one_does_not_answer(server, url):
    assert fetcher().fetch(url("image", "two.cdn.example")) == IMAGE
    code, message = error_of(url("image", "dead.cdn.example"), fetcher())
    assert code is ErrorCode.IMAGE_FETCH_FAILED
    assert "refused" in message


def test_an_address_that_says_nothing_leaves_time_for_the_next(server, url, monkeypatch):
    given = []
    connect = httpcore.SyncBackend.connect_tcp

    def connect_tcp(self, host, port, timeout=None, *arguments):
        given.append((host, timeout))
        if host != HERE:
            raise httpcore.ConnectTimeout
        return connect(self, host, port, timeout, *arguments)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_tcp)
    assert fetcher().fetch(url("image", "two.cdn.example")) == IMAGE
    [(first, first_seconds), (second, second_seconds)] = given
    assert (first, second) == ("127.0.0.2", HERE)
    assert first_seconds <= 5 < second_seconds <= 10


def test_a_name_server_that_does_not_answer_counts_in_the_time(url):
    ended = threading.Event()

    def silent(host: str, port: int) -> list[str]:
        ended.wait(30)
        return []

    try:
        limits = FetchLimits(timeout_s=0.05)
        code, message = error_of(url("image"), fetcher(limits, resolve=silent))
    finally:
        ended.set()
    assert code is ErrorCode.IMAGE_FETCH_FAILED
    assert "longer than 0.05 seconds" in message


def test_tls_verifies_the_name_and_not_the_address():
    authority = trustme.CA()
    client, own = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("images.example.org").configure_cert(own)
    with serving(own) as server:
        trusting = fetcher(tls=client)
        assert trusting.fetch(f"https://images.example.org:{server.server_port}/image") == IMAGE
        for untrusted, host in ((trusting, "other"), (fetcher(), "images")):
            code, message = error_of(
                f"https://{host}.example.org:{server.server_port}/image", untrusted
            )
            assert code is ErrorCode.IMAGE_FETCH_FAILED
            assert "certificate" in message.lower()


def test_proxies_of_the_environment_are_not_used(url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetcher().fetch(url("image")) == IMAGE


class Noted:
    """A loader that notes what it is given."""

    def __init__(self) -> None:
        self.given: list[ImageRef] = []
        self.closed = False

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        self.given.append(ref)
        return Future()

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class OfTheWeb:
    """Fetches with no store beside it."""

    def __init__(self) -> None:
        self.fetch = fetcher().fetch

    def close(self) -> None:
        pass


def test_a_loader_gets_the_bytes_and_other_images_as_they_are(url):
    noted = Noted()
    loader = UrlLoader(noted, SharedFetches(OfTheWeb(), 2**20))
    loader.submit(ImageRef("a.png"))
    place = url("image")
    small = ImageResolution(max_pixels=1000)
    loader.submit(ImageRef(url=place, resolution=small, row_images=3))
    assert noted.given == [ImageRef("a.png"), ImageRef(place, IMAGE, resolution=small)]
    assert noted.given[1].row_images == 3  # which makes no difference to ==
    failed = loader.submit(ImageRef(url=url("status/404")))
    assert isinstance(failed.exception(), RowError)
    assert len(noted.given) == 2
    loader.close()
    assert noted.closed
