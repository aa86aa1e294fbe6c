"""fsspec's file systems by URL, and what they raise as a few errors of our own."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from vlmbatch.errors import ConfigError, VlmbatchError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONNECT_SECONDS = 10
READ_SECONDS = 20  # without a byte, before a request is tried again
ATTEMPTS = 3
MAX_CONNECTIONS = 64  # no fewer than the threads that fetch images
_SHOWN_CHARACTERS = 300
_BY_GRPC = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"  # gcsfs' own; buckets of one zone need it

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MISSING = (404, 410)
_FORBIDDEN = (401, 403)
_PASSING = (408, 425, 429)  # of those below 500: what may be tried again
_LASTING = frozenset(
    {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
)


class RemoteError(VlmbatchError):
    """A store refused a request, and would again; the message begins with the URL."""

    exit_status = 74


class RemoteMissingError(RemoteError):
    """There is no such object, folder or bucket."""


class RemoteForbiddenError(RemoteError):
    """The store wants other credentials than there are, or any."""


class RemoteFailedError(RemoteError):
    """The store could not be reached, stalled or failed, also when tried again; it may be later."""


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
    _store: _Store = field(repr=False)

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
            raise _translated(error, self.url, self._store) from error


@dataclass(frozen=True, slots=True)
class _Store:
    """What is known of the file systems of a scheme.

    ``raised`` are the errors that are no ``OSError``, ``refused`` those among them that say that
    there are no credentials, which ``access`` says how to give. ``log``: where a library also
    writes what it raises, with tracebacks.
    """

    install: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    raised: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    forbidden: str | None = None
    access: str = ""
    log: str | None = None

    def kinds(self) -> tuple[type[Exception], ...]:
        if not self.raised:
            return (Exception,)  # of a package that is not known here anything can come
        return (OSError, ValueError, NotImplementedError, *map(_imported, self.raised))

    def refuses(self, error: BaseException) -> bool:
        if self.forbidden is not None and str(error).startswith(self.forbidden):
            return True
        return isinstance(error, tuple(map(_imported, self.refused)))


_S3 = _Store(
    install="pip install 'vlmbatch[s3]'",
    options={
        "config_kwargs": {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": MAX_CONNECTIONS,
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
        }
    },
    raised=(
        "botocore.exceptions.BotoCoreError",
        "botocore.exceptions.ClientError",
        "aiohttp.ClientError",
        "urllib3.exceptions.HTTPError",
    ),
    refused=(
        "botocore.exceptions.NoCredentialsError",
        "botocore.exceptions.PartialCredentialsError",
        "botocore.exceptions.CredentialRetrievalError",
        "botocore.exceptions.ProfileNotFound",
    ),
    access="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role give access; "
    "FSSPEC_S3_ANON=true reads public buckets",
)
_GS = _Store(
    install="pip install 'vlmbatch[gs]'",
    options={"requests_timeout": READ_SECONDS},
    raised=(
        "gcsfs.retry.HttpError",
        "gcsfs.retry.ChecksumError",
        "gcsfs.retry.NonRetryableError",
        "google.auth.exceptions.GoogleAuthError",
        "google.api_core.exceptions.GoogleAPIError",
        "aiohttp.ClientError",
    ),
    refused=("google.auth.exceptions.GoogleAuthError",),
    forbidden="Forbidden: ",  # of an OSError that has no number
    access="GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login give access; "
    "FSSPEC_GS_TOKEN=anon reads public buckets",
    log="gcsfs",
)
_AZ = _Store(
    install="pip install 'vlmbatch[az]'",
    options={"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS},
    raised=("azure.core.exceptions.AzureError", "aiohttp.ClientError"),
    refused=("azure.core.exceptions.ClientAuthenticationError",),
    access="AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, "
    "or AZURE_STORAGE_CONNECTION_STRING, give access; AZURE_STORAGE_ANON=true reads public "
    "containers",
)
_HF = _Store(
    install="pip install 'huggingface-hub>=1.0'",
    raised=(
        "huggingface_hub.errors.HTTPError",
        "huggingface_hub.errors.EntryNotFoundError",
        "huggingface_hub.errors.RevisionNotFoundError",
    ),
    access="HF_TOKEN, or hf auth login, gives access",
)
_STORES = {
    "s3": _S3,
    "s3a": _S3,
    "gs": _GS,
    "gcs": _GS,
    "az": _AZ,
    "abfs": _AZ,
    "abfss": _AZ,
    "hf": _HF,
}


def scheme_of(text: str) -> str | None:
    """The scheme of a ``scheme://`` that is not http(s), in lower case; None for other text."""
    found = _SCHEME.match(text)
    if found is None or (scheme := found[1].lower()) in ("http", "https"):
        return None
    return scheme


def is_known(scheme: str) -> bool:
    """Whether fsspec has heard of a scheme; what reads it may not be installed."""
    from fsspec import available_protocols

    return scheme in _STORES or scheme in available_protocols()


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
    store = _STORES.get(scheme, _Store())
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
        raise ConfigError(f"{url}: cannot be opened: {_short(error)}{access}") from error
    return RemotePath(url, filesystem, path, store)


def _class_of(scheme: str) -> type[AbstractFileSystem]:
    from fsspec.registry import get_filesystem_class

    if scheme in ("gs", "gcs") and _BY_GRPC not in os.environ:
        # gcsfs' other class asks for a bucket's kind by gRPC before each request, and where that is
        # let through by no proxy or emulator, waits a minute for it.
        from gcsfs.core import GCSFileSystem

        return cast("type[AbstractFileSystem]", GCSFileSystem)
    return cast("type[AbstractFileSystem]", get_filesystem_class(scheme))


def _translated(error: Exception, url: str, store: _Store) -> RemoteError:
    status = http_status(error)
    if store.refuses(error) or isinstance(error, PermissionError) or status in _FORBIDDEN:
        access = store.access and f" ({store.access})"
        return RemoteForbiddenError(f"{url}: access is denied: {_short(error)}{access}")
    if isinstance(error, FileNotFoundError) or status in _MISSING:
        said = _short(error)
        more = "" if url.partition("://")[2].rstrip("/") in said else f" ({said})"
        return RemoteMissingError(f"{url}: there is nothing there{more}")
    if isinstance(error, TimeoutError) and not str(error):
        return RemoteFailedError(f"{url}: no answer for too long")
    if _lasts(error, status):
        return RemoteError(f"{url}: {_short(error)}")
    return RemoteFailedError(f"{url}: {_short(error)}")


def _lasts(error: Exception, status: int | None) -> bool:
    """Whether another attempt would end as this one."""
    if status is not None:
        return 300 <= status < 500 and status not in _PASSING
    if isinstance(error, OSError):
        return error.errno in _LASTING
    return isinstance(error, ValueError | NotImplementedError)


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that an error or one of its causes tells of."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore's
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None)
        for name in ("status_code", "status", "code"):
            found = found or getattr(error, name, None)
        if str(found).isdigit():
            return int(str(found))
        error = error.__cause__
    return None


def _short(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _imported(name: str) -> type[Exception]:
    module, _, kind = name.rpartition(".")
    found: type[Exception] = getattr(importlib.import_module(module), kind)
    return found
