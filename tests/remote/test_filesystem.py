"""Opening a file system by its URL, and what is said when that or a request fails."""

from __future__ import annotations

import errno
import sys
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from fsspec.registry import _registry
from s3fs.errors import translate_boto_error

from vlmbatch.errors import ConfigError
from vlmbatch.remote import filesystem
from vlmbatch.remote.errors import (
    RemoteError,
    RemoteFailedError,
    RemoteForbiddenError,
    RemoteMissingError,
    translated,
)
from vlmbatch.remote.filesystem import RemotePath, open_filesystem, scheme_of
from vlmbatch.remote.stores import STORES


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("s3://bucket/rows.jsonl", "s3"),
        ("S3://bucket", "s3"),
        ("hf://datasets/a/b", "hf"),
        ("https://example.org/a.jpg", None),
        ("HTTP://example.org/a.jpg", None),
        ("folder/rows.jsonl", None),
        ("a:b//c", None),
        ("data:image/png;base64,AA", None),
        ("", None),
    ],
)
def test_scheme(text: str, scheme: str | None) -> None:
    assert scheme_of(text) == scheme


@pytest.mark.parametrize(
    ("url", "module", "advice"),
    [
        ("s3://bucket/k", "s3fs", "pip install 'vlmbatch[s3]'"),
        ("gs://bucket/k", "gcsfs", "pip install 'vlmbatch[gs]'"),
        ("abfs://box/k", "adlfs", "pip install 'vlmbatch[az]'"),
        ("webdav://host/k", "webdav4", "Install webdav4"),
    ],
)
def test_a_missing_package_is_named(
    url: str, module: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, url.partition("://")[0], raising=False)
    with pytest.raises(ConfigError) as caught:
        open_filesystem(url)  # although fsspec may have opened others of the scheme
    assert str(caught.value).startswith(f"{url}: ")
    assert advice in str(caught.value)


def test_an_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="no scheme nope:// is known"):
        open_filesystem("nope://x")


def test_a_library_that_wants_more_than_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adlfs")  # which is in none of our tools
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    with pytest.raises(ConfigError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_filesystem("az://box/k")


def test_paths_of_one_file_system() -> None:
    folder = open_filesystem("s3://bucket/folder/")
    assert (folder.scheme, folder.path) == ("s3", "bucket/folder")
    child = folder.child("a b.jpg")
    assert (child.url, child.path) == ("s3://bucket/folder/a b.jpg", "bucket/folder/a b.jpg")
    assert child.filesystem is folder.filesystem


@pytest.fixture(scope="module")
def place() -> RemotePath:
    return open_filesystem("s3://bucket/k")


def s3_error(status: int, code: str) -> Exception:
    """What s3fs raises where S3 answers so."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "GetObject"))


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (s3_error(404, "NoSuchBucket"), RemoteMissingError, "nothing there"),
        (s3_error(404, "404"), RemoteMissingError, "nothing there"),
        (s3_error(403, "AccessDenied"), RemoteForbiddenError, "AWS_ACCESS_KEY_ID"),
        (s3_error(403, "NotListedAnywhere"), RemoteForbiddenError, "denied"),
        (s3_error(503, "SlowDown"), RemoteFailedError, "SlowDown"),
        (s3_error(429, "TooManyRequests"), RemoteFailedError, "TooMany"),
        (s3_error(301, "PermanentRedirect"), RemoteError, "PermanentRedirect"),
        (s3_error(400, "InvalidBucketName"), RemoteError, "InvalidBucketName"),
        (NoCredentialsError(), RemoteForbiddenError, "FSSPEC_S3_ANON"),
        (ReadTimeoutError(endpoint_url="http://x"), RemoteFailedError, "timeout"),
        (TimeoutError(), RemoteFailedError, "no answer"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), RemoteFailedError, "reset"),
        (IsADirectoryError(errno.EISDIR, "is a folder"), RemoteError, "is a folder"),
        (ValueError("two\nlines"), RemoteError, "two lines"),
        (OSError("x" * 999), RemoteFailedError, "x…"),
    ],
)
def test_errors_become_ours(
    place: RemotePath, error: Exception, kind: type[RemoteError], part: str
) -> None:
    with pytest.raises(RemoteError) as caught, place.errors():
        fail(error)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("s3://bucket/k: ")
    assert part in str(caught.value)
    assert len(str(caught.value)) < 550


def test_what_is_no_error_of_a_store_passes(place: RemotePath) -> None:
    with pytest.raises(KeyError), place.errors():
        raise KeyError("ours")


def test_a_file_system_that_is_not_known_here_has_its_errors_translated_too() -> None:
    place = open_filesystem("memory://folder/none")
    with pytest.raises(RemoteMissingError, match="memory://folder/none"), place.errors():
        place.filesystem.info(place.path)
    with pytest.raises(RemoteFailedError, match="odd"), place.errors():
        raise KeyError("odd")


def test_google_forbids_without_a_number() -> None:
    """What gcsfs makes of status 403."""
    google = STORES["gs"]
    error = translated(OSError("Forbidden: b/o/k\nno"), "gs://b/k", google)
    assert type(error) is RemoteForbiddenError and "GOOGLE_APPLICATION_CREDENTIALS" in str(error)


def test_google_is_asked_by_http_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """gcsfs' own choice asks by gRPC first, which emulators and proxies let wait for a minute."""
    chosen, plain = type("Chosen", (), {}), type("Plain", (), {})
    monkeypatch.setitem(_registry, "gs", chosen)
    monkeypatch.setitem(sys.modules, "gcsfs", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gcsfs.core", SimpleNamespace(GCSFileSystem=plain))
    monkeypatch.delenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", raising=False)
    assert filesystem._class_of("gs") is plain
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "true")
    assert filesystem._class_of("gs") is chosen
