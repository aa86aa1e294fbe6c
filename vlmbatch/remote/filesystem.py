"""fsspec's file systems by URL."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from vlmbatch.errors import ConfigError
from vlmbatch.remote.errors import short, translated
from vlmbatch.remote.stores import STORES, Store

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BY_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"  # gcsfs' own; buckets of one zone need it

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An object, a folder or a pattern of a store.

    ``path`` is what ``filesystem`` calls it, which is shared by all paths made from one and may be
    used by several threads at a time. ``url`` is for messages. Calls of the file system belong in
    ``errors``.
    """

    url: str
    filesystem: AbstractFileSystem
    path: str
    _store: Store = field(repr=False)

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def at(self, path: str) -> RemotePath:
        """Another path of the same file system, as its listings give them."""
        return replace(self, url=f"{self.scheme}://{path}", path=path)

    def child(self, name: str) -> RemotePath:
        """``name`` below this one."""
        return self.at(f"{self.path.rstrip('/')}/{name}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raises what the file system raises within as one of ours.

        Raises:
            RemoteError: or the subclass of it that says more.
        """
        try:
            yield
        except self._store.kinds() as error:
            raise translated(error, self.url, self._store) from error


def scheme_of(text: str) -> str | None:
    """The scheme of a ``scheme://`` that is not http(s), in lower case; None for other text."""
    found = _SCHEME.match(text)
    if found is None or (scheme := found[1].lower()) in ("http", "https"):
        return None
    return scheme


def is_known(scheme: str) -> bool:
    """Whether fsspec has heard of a scheme; what reads it may not be installed."""
    from fsspec import available_protocols

    return scheme in STORES or scheme in available_protocols()


def open_filesystem(url: str) -> RemotePath:
    """The file system of ``url``, which has a scheme, and the path in it. Nothing is looked at yet.

    Credentials, endpoints and regions are those that its library takes from the environment.
    Listings are not kept: what is in a store may change.

    Raises:
        ConfigError: the scheme is not known, what reads it is not installed, or the library wants
            more than a URL.
    """
    scheme = scheme_of(url)
    assert scheme is not None, f"{url} has no scheme"
    url = f"{scheme}{url[len(scheme) :]}"
    store = STORES.get(scheme, Store())
    try:
        kind = _class_of(scheme)
    except ImportError as error:
        wanted = store.install and f"it is read by a package that is not installed: {store.install}"
        raise ConfigError(f"{url}: {wanted or error}") from error
    except ValueError as error:
        raise ConfigError(
            f"{url}: no scheme {scheme}:// is known; s3, gs, az and hf are, and others that fsspec "
            "has"
        ) from error
    if store.log is not None:
        logging.getLogger(store.log).setLevel(logging.CRITICAL)
    kinds: tuple[type[Exception], ...] = (*store.kinds(), TypeError)
    options = {**kind._get_kwargs_from_urls(url), **store.options}
    try:
        # Kept by fsspec, one would go on with the credentials and endpoint that it began with.
        filesystem = kind(**options, use_listings_cache=False, skip_instance_cache=True)
        path = kind._strip_protocol(url)
    except kinds as error:
        access = store.access and f" ({store.access})"
        raise ConfigError(f"{url}: cannot be opened: {short(error)}{access}") from error
    return RemotePath(url, filesystem, path, store)


def _class_of(scheme: str) -> type[AbstractFileSystem]:
    from fsspec.registry import get_filesystem_class

    if scheme in ("gs", "gcs") and _BY_GRPC not in os.environ:
        # gcsfs' other class asks for a bucket's kind by gRPC before each request, and where that is
        # let through by no proxy or emulator, waits a minute for it.
        from gcsfs.core import GCSFileSystem

        return cast("type[AbstractFileSystem]", GCSFileSystem)
    return cast("type[AbstractFileSystem]", get_filesystem_class(scheme))
