"""Images by URL: embedded data, one of an allowed host or bucket, or where it is allowed a file."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.images.addresses import refusal
from vlmbatch.images.buckets import AllowedBuckets, bucket_of, is_bucket_url
from vlmbatch.types import ImageRef

MAX_DATA_BYTES = 64 * 2**20  # of one embedded image, decoded
_MAX_URL_CHARACTERS = 8192

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DATA_HEAD = re.compile(r"data:(?:image/[\w.+-]+|application/octet-stream)?((?:;[\w.+-]+=[^;,]*)*)")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")


@dataclass(frozen=True, slots=True)
class AllowedDomains:
    """Hosts that images may be fetched from: exact names, and ``*.name`` for all below a name.

    Raises:
        ConfigError: an entry is no host name, or an address that is not public.
    """

    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(map(_checked_domain, self.names)))

    @classmethod
    def of(cls, names: Iterable[str]) -> AllowedDomains:
        return cls(frozenset(names))

    def __bool__(self) -> bool:
        return bool(self.names)

    def allows(self, host: str) -> bool:
        """Whether a host, as ``host_of`` gives it, is one of them."""
        labels = host.split(".")
        parents = (".".join(labels[place:]) for place in range(1, len(labels)))
        return host in self.names or any(f"*.{parent}" in self.names for parent in parents)


@dataclass(frozen=True, slots=True)
class ImageUrls:
    """Reads URLs of images by what a server, a batch or a manifest allows.

    ``domains``: hosts of http(s) URLs. ``buckets``: of object stores. ``file_base``: where relative
    file paths start; None, as in a server, refuses paths. ``max_data_bytes``: of one embedded
    image.
    """

    domains: AllowedDomains = field(default_factory=AllowedDomains)
    file_base: Path | None = None
    max_data_bytes: int = MAX_DATA_BYTES
    buckets: AllowedBuckets = field(default_factory=AllowedBuckets)

    def read(self, url: str, where: str) -> ImageRef:
        """The image that ``url`` stands for; nothing is fetched or opened. ``where`` names it.

        Raises:
            RowError: it is none, or one that is not allowed.
        """
        scheme = _SCHEME.match(url)
        name = scheme[1].lower() if scheme else None
        if name == "data":
            return ImageRef(f"image at {where}", self._data(url, where))
        if name in ("http", "https"):
            try:
                host = host_of(url)
            except ValueError as error:
                raise RowError(ErrorCode.IMAGE_INVALID, f"{shown(url)}: {error}") from error
            if not self.domains.allows(host):
                raise RowError(ErrorCode.IMAGE_FORBIDDEN, forbidden_host(url, host, self.domains))
            return ImageRef(url=url)
        if name is not None and is_bucket_url(url):
            url = name + url[len(name) :]
            if not self.buckets.allows(url):
                raise RowError(ErrorCode.IMAGE_FORBIDDEN, _forbidden_bucket(url))
            return ImageRef(url=url)
        if scheme is None and self.file_base is not None:
            return ImageRef(self._path(url, self.file_base, where))
        what = f"'{shown(url)}' is " + (f"a {name}: URL" if name else "no URL")
        allowed = "a data: URL with base64, or an http(s) URL of an allowed host"
        if self.file_base is not None:
            allowed += ", or the path of a file"
        raise RowError(
            ErrorCode.IMAGE_FORBIDDEN if name else ErrorCode.IMAGE_INVALID,
            f"{where}: {what}; an image is {allowed}",
        )

    def _data(self, url: str, where: str) -> bytes:
        head, comma, encoded = url.partition(",")
        lowered = head.lower()
        if not comma or not lowered.endswith(";base64"):
            raise _bad_data(where, "a data: URL must be data:image/...;base64, and then the data")
        if not _DATA_HEAD.fullmatch(lowered.removesuffix(";base64")):
            raise _bad_data(where, f"'{shown(head)}' is not the media type of an image")
        if "%" in encoded:
            encoded = urllib.parse.unquote(encoded, errors="replace")
        size = len(encoded) * 3 // 4 - encoded[-2:].count("=")
        if size > self.max_data_bytes:
            raise RowError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{where}: {size} bytes of data, over the limit of {self.max_data_bytes} bytes",
            )
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
            raise _bad_data(where, f"the data is not base64: {error}") from error
        if not data:
            raise _bad_data(where, "the data is empty")
        return data

    def _path(self, path: str, base: Path, where: str) -> str:
        if not path or "\0" in path:
            cause = "contains a NUL character" if path else "is empty"
            raise RowError(ErrorCode.IMAGE_INVALID, f"{where}: the path {shown(path)!r} {cause}")
        return str(base / path)


def host_of(url: str) -> str:
    """The host of an http(s) URL: lower case, ASCII, without a dot at the end.

    Raises:
        ValueError: the URL is malformed or has a user name in it; the message says which.
    """
    if len(url) > _MAX_URL_CHARACTERS:
        raise ValueError(f"the URL has {len(url)} characters, over {_MAX_URL_CHARACTERS}")
    if _UNSAFE.search(url):
        raise ValueError("the URL has a blank, a backslash or a control character in it")
    parts = urllib.parse.urlsplit(url)  # raises ValueError for a bad [...]
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL has a user name or password in it")
    if parts.port == 0:  # raises ValueError for one out of range
        raise ValueError("the URL has the port 0")
    host = (parts.hostname or "").removesuffix(".")
    if not host:
        raise ValueError("the URL has no host")
    if "" in host.split("."):
        raise ValueError(f"the host {host!r:.100} has two dots in a row, or one in front")
    try:
        return host if host.isascii() else host.encode("idna").decode().lower()
    except UnicodeError as error:
        raise ValueError(f"the host {host!r:.100} is no domain name") from error


def forbidden_host(url: str, host: str, domains: AllowedDomains) -> str:
    """The message for a host that is not allowed."""
    if kind := _kind_of_address(host):
        return f"{shown(url)}: {host} is {kind}"
    if not domains:
        return f"{shown(url)}: images are not fetched; --allow-domain {host} would allow it"
    return f"{shown(url)}: the host {host} is not allowed (see --allow-domain)"


def _forbidden_bucket(url: str) -> str:
    if ".." in url.split("/"):
        return f"{shown(url)}: a path in a bucket may not have .. in it"
    bucket = bucket_of(url)
    return f"{shown(url)}: --allow-bucket {bucket} would allow images of this bucket"


def shown(url: str) -> str:
    """A URL for messages, which may hold an image."""
    return url if len(url) <= 100 else f"{url[:99]}…"


def _bad_data(where: str, cause: str) -> RowError:
    return RowError(ErrorCode.IMAGE_INVALID, f"{where}: {cause}")


def _kind_of_address(host: str) -> str | None:
    """Of a host that is an address itself, and not a public one: what is wrong with it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    kind = refusal(host)
    return kind and f"a {kind} address: images are fetched from public addresses only"


def _checked_domain(name: str) -> str:
    try:
        host = host_of(f"http://{name.removeprefix('*.')}/")
    except ValueError as error:
        raise ConfigError(f"--allow-domain {name}: {error}") from error
    bare = name.removeprefix("*.").lower().removesuffix(".")
    is_name = all(_LABEL.fullmatch(label) for label in host.split("."))
    if not is_name or (bare.isascii() and bare != host):
        raise ConfigError(
            f'--allow-domain {name}: give a host such as "images.example.org", or '
            '"*.example.org" for all below it'
        )
    if kind := _kind_of_address(host):
        raise ConfigError(f"--allow-domain {name} is {kind}")
    return f"*.{host}" if name.startswith("*.") else host
