"""Putting a file whole, while nobody else has put anything in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vlmbatch.errors import UsageError
from vlmbatch.log import logger
from vlmbatch.remote.az_upload import AZ_SCHEMES, AzureUpload, uncommitted_blocks
from vlmbatch.remote.errors import RemoteFailedError, RemoteMissingError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.gs_upload import GS_SCHEMES, GoogleUpload, check_google
from vlmbatch.remote.s3_upload import S3_SCHEMES, S3Upload, check_s3
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, Sent, changed, version_of

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

# Of stores in which nothing lies beside the buckets.
BUCKET_SCHEMES = (*S3_SCHEMES, *GS_SCHEMES, *AZ_SCHEMES)
_PUT_SECONDS = 300
PAUSES_S = (2, 10, 30, 60, 120)  # after attempts to put that have failed


def allow_slow_puts(path: RemotePath) -> None:
    """Let the file system of ``path``, which nothing was asked yet, wait for the answer to a put as
    long as a slow line takes to send a part: no time passes for its libraries while they send."""
    filesystem = path.filesystem
    if path.scheme in S3_SCHEMES:
        filesystem.config_kwargs = {**filesystem.config_kwargs, "read_timeout": _PUT_SECONDS}
    elif path.scheme in GS_SCHEMES:
        filesystem.requests_timeout = _PUT_SECONDS


def check_writable(path: RemotePath) -> None:
    """Find out whether an object can be put at ``path``, as far as its store tells beforehand.

    Raises:
        UsageError: there is no such bucket.
        RemoteError: the store would not take it, or cannot be reached.
    """
    try:
        if path.scheme in S3_SCHEMES:
            check_s3(path)
        elif path.scheme in GS_SCHEMES:
            check_google(path)
        elif path.scheme in AZ_SCHEMES:
            uncommitted_blocks(path)
    except RemoteMissingError as error:
        bucket = path.path.lstrip("/").partition("/")[0]
        raise UsageError(f"{path.url}: there is no bucket {bucket}; create it first") from error


def put_object(
    source: Path, path: RemotePath, expected: str | None, uploads: UploadLog, sent: Sent
) -> str:
    """Put the file ``source`` whole, where an object of the version ``expected`` is, or none.

    Returns the version that is there now. S3, Google's and Azure's stores see to the condition, and
    a later call goes on with what a lost connection or a killed process has sent, by ``uploads``.
    Elsewhere the version is looked at just before, and the file grows under another name.

    Raises:
        ChangedError: another version is there.
        RemoteError: the store refuses, or cannot be reached.
    """

    def check() -> None:
        if version_of(path) != expected:
            raise changed(path)

    if path.scheme in S3_SCHEMES:
        return S3Upload(path, source, uploads, sent).put(expected, check)
    if path.scheme in GS_SCHEMES:
        return GoogleUpload(path, source, uploads, sent).put(expected, check)
    if path.scheme in AZ_SCHEMES:
        return AzureUpload(path, source, sent).put(expected, check)
    check()
    callback = _callback(sent)
    folder, _, name = path.path.rpartition("/")
    temporary = f"{folder}/.{name}.vlmbatch.tmp"
    with path.errors():
        path.filesystem.makedirs(folder, exist_ok=True)
        path.filesystem.put_file(str(source), temporary, callback=callback)
    check()
    with path.errors():
        path.filesystem.mv(temporary, path.path)
    callback.absolute_update(source.stat().st_size)  # not all of them tell
    version = version_of(path)
    if version is None:
        raise ChangedError(f"{path.url} was removed as soon as it was put")
    return version


def put_patiently(put: Callable[[], None]) -> None:
    """Call ``put`` again, for some minutes, where the store fails.

    Raises:
        RemoteError: it fails still, or what it has raised besides.
    """
    for pause in PAUSES_S:
        try:
            put()
        except RemoteFailedError as error:
            logger.warning("%s. Trying again in %d s", error, pause)
            time.sleep(pause)
        else:
            return
    put()


def replace_object(data: bytes, path: RemotePath) -> None:
    """Put a small object in the place of whatever is there.

    Raises:
        RemoteError: the store refuses, or cannot be reached.
    """
    with TemporaryDirectory(prefix="vlmbatch-") as folder:
        source = Path(folder) / "object"
        source.write_bytes(data)
        uploads = UploadLog(Path(folder) / "uploads.json")
        put_object(source, path, version_of(path), uploads, lambda _: None)


def _callback(count: Sent) -> Callback:
    """``count`` as fsspec calls it: with bytes more, or bytes so far."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]  # fsspec has no types
        def call(self, *args: Any, **kwargs: Any) -> None:
            count(self.value - self.counted)
            self.counted = self.value

        counted = 0

    return Counting()
