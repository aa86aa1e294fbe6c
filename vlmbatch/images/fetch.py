"""Fetching images from URLs that strangers wrote: of allowed hosts and public addresses only."""

from __future__ import annotations

import io
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import httpcore

from vlmbatch import __version__
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.addresses import Resolver, refusal, resolve, resolve_within
from vlmbatch.images.fetch_budget import Room
from vlmbatch.images.urls import AllowedDomains, forbidden_host, host_of, shown

_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_SAFE = "!$%&'()*+,/:;=?@[]~"  # left as they are in a request's target: escapes stay escapes


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What fetching one image may cost, redirects included."""

    max_bytes: int = 64 * 2**20
    timeout_s: float = 20.0
    max_redirects: int = 3


class ImageFetcher:
    """Fetches images over http(s). Thread-safe; no proxy, no cookies, no cache.

    Every host, also that of a redirect, must be one of ``domains``. Its name is resolved once, all
    its addresses must be public, and the connection goes to the first of them that takes it. TLS
    verifies the name by the system's certificates. ``resolve`` and ``refusal`` are for tests.
    """

    def __init__(
        self,
        domains: AllowedDomains,
        limits: FetchLimits = FetchLimits(),
        *,
        resolve: Resolver = resolve,
        refusal: Callable[[str], str | None] = refusal,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._domains = domains
        self._limits = limits
        self._resolve = resolve
        self._refusal = refusal
        self._given_tls = tls

    def fetch(self, url: str, room: Room | None = None) -> bytes:
        """The content at ``url``; waits for it, ``timeout_s`` at most. ``room``: that it may take,
        enlarged as its length is known or bytes come; None: as much as any.

        Raises:
            RowError: IMAGE_FETCH_FAILED, IMAGE_FORBIDDEN or IMAGE_TOO_LARGE.
            LargerError: there is no room for all of it.
        """
        return self._fetch(url, None, room)

    def fetch_start(self, url: str, num_bytes: int) -> bytes:
        """The first bytes at ``url``, or all of less; errors as of ``fetch``."""
        return self._fetch(url, num_bytes, None)

    def _fetch(self, url: str, num_bytes: int | None, room: Room | None) -> bytes:
        deadline = time.monotonic() + self._limits.timeout_s
        place = url
        for _ in range(self._limits.max_redirects + 1):
            try:
                answer = self._get(_Target.of(place), place, deadline, num_bytes, room)
            except (httpcore.TimeoutException, TimeoutError) as error:
                raise _failed(
                    url, f"took longer than {self._limits.timeout_s:g} seconds"
                ) from error
            except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
                raise _failed(url, str(error) or type(error).__name__) from error
            except ValueError as error:  # UnicodeError is one
                raise _failed(url, f"{shown(place)}: {error}") from error
            if isinstance(answer, bytes):
                return answer
            place = urllib.parse.urljoin(place, answer.location)
        raise _failed(url, f"more than {self._limits.max_redirects} redirects")

    def _get(
        self,
        target: _Target,
        url: str,
        deadline: float,
        num_bytes: int | None,
        room: Room | None,
    ) -> bytes | _Redirect:
        if not self._domains.allows(target.host):
            message = forbidden_host(url, target.host, self._domains)
            raise RowError(ErrorCode.IMAGE_FORBIDDEN, message)
        addresses = self._checked_addresses(target, url, _seconds_left(deadline))
        origin = httpcore.Origin(target.scheme.encode(), target.host.encode("ascii"), target.port)
        backend = _PinnedBackend(addresses, deadline)
        tls = self._tls if target.scheme == "https" else None
        asked = target.headers
        if num_bytes is not None:
            asked.append((b"Range", b"bytes=0-%d" % (num_bytes - 1)))
        with (
            httpcore.HTTPConnection(origin, ssl_context=tls, network_backend=backend) as connection,
            connection.stream("GET", target.url, headers=asked) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return _Redirect(headers[b"location"].decode("latin-1"))
            if num_bytes is not None and response.status == 416:  # of an empty file
                return b""
            if response.status != 200 and (num_bytes is None or response.status != 206):
                raise _failed(url, f"the server answered with status {response.status}")
            encoding = headers.get(b"content-encoding", b"identity").lower()
            if encoding != b"identity":
                raise _failed(url, f"the server sent the encoding {encoding!r:.40}, not asked for")
            length = headers.get(b"content-length", b"")
            if response.status == 206:
                length = headers.get(b"content-range", b"").rpartition(b"/")[2]
            if length.isdigit():
                if int(length[:20]) > self._limits.max_bytes:
                    raise self._too_large(url)
                if room is not None:
                    room.enlarge(int(length))
            return self._body(response.iter_stream(), url, num_bytes, room)

    def _body(
        self, chunks: Iterable[bytes], url: str, num_bytes: int | None, room: Room | None
    ) -> bytes:
        body = io.BytesIO()  # whose bytes are not copied in the end
        for chunk in chunks:
            body.write(chunk)
            size = body.tell()
            if num_bytes is not None and size >= num_bytes:
                body.truncate(num_bytes)
                break
            if size > self._limits.max_bytes:
                raise self._too_large(url)
            if room is not None and size > room.num_bytes:
                room.enlarge(min(2 * size, self._limits.max_bytes))
        return body.getvalue()

    def _checked_addresses(self, target: _Target, url: str, seconds: float) -> list[str]:
        """The host's addresses, one at least, when all of them are public."""
        try:
            addresses = resolve_within(seconds, self._resolve, target.host, target.port)
        except TimeoutError:  # an OSError; that of the whole
            raise
        except (OSError, UnicodeError) as error:
            raise _failed(url, f"the host {target.host} is not found: {error}") from error
        for address in addresses:
            if kind := self._refusal(address):
                raise RowError(
                    ErrorCode.IMAGE_FORBIDDEN,
                    f"{shown(url)}: {target.host} has the {kind} address {address}: images are "
                    "fetched from public addresses only",
                )
        if not addresses:
            raise _failed(url, f"the host {target.host} has no address")
        return addresses

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    def _too_large(self, url: str) -> RowError:
        return RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{shown(url)}: over the limit of {self._limits.max_bytes} bytes for a fetched image",
        )


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart once, so that what is checked is what is connected to."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> _Target:
        """Raises ValueError for what is no http(s) URL."""
        host = host_of(url)
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError(f"a {parts.scheme}: URL; images are fetched by http and https only")
        path = parts.path or "/"
        if parts.query:
            path += f"?{parts.query}"
        return cls(
            parts.scheme,
            host,
            parts.port or _PORTS[parts.scheme],
            urllib.parse.quote(path, safe=_SAFE),
        )

    @property
    def url(self) -> httpcore.URL:
        return httpcore.URL(
            scheme=self.scheme.encode(),
            host=self.host.encode("ascii"),
            port=self.port,
            target=self.path.encode("ascii"),
        )

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        host = self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"
        return [
            (b"Host", host.encode("ascii")),
            (b"User-Agent", f"vlmbatch/{__version__}".encode()),
            (b"Accept", b"image/*"),
            (b"Accept-Encoding", b"identity"),  # what is unpacked could be of any size
            (b"Connection", b"close"),
        ]


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to one of ``addresses`` whatever the host's name; no waiting beyond ``deadline``.

    They are tried in their order, each for its share of the time that is left.
    """

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        for num_left in range(len(self._addresses), 0, -1):
            try:
                stream = self._backend.connect_tcp(
                    self._addresses[-num_left],
                    port,
                    _seconds_left(self._deadline) / num_left,
                    local_address,
                    socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if num_left == 1:
                    raise
            else:
                return _TimedStream(stream, self._deadline)
        raise AssertionError("there is no address")


class _TimedStream(httpcore.NetworkStream):
    """A connection on which nothing waits beyond ``deadline``, however slowly bytes drip in."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _seconds_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _seconds_left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _seconds_left(self._deadline)
        stream = self._stream.start_tls(ssl_context, server_hostname, left)
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _failed(url: str, cause: str) -> RowError:
    return RowError(ErrorCode.IMAGE_FETCH_FAILED, f"{shown(url)}: {cause}")
