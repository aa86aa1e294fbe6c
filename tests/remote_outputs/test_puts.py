"""Putting one object: whole or not at all, in the place of what is expected, and only once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from s3_server import S3Server

from vlmbatch.errors import UsageError
from vlmbatch.remote import file_parts
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.puts import allow_slow_puts, check_writable, put_object
from vlmbatch.remote.stores import READ_SECONDS
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import (
    ChangedError,
    fetch_object,
    names_in,
    read_end,
    read_object,
    remove_object,
    version_of,
)

PART_BYTES = 5 * 2**20  # the smallest that S3 takes
LARGE = 3 * PART_BYTES + 1000


@pytest.fixture
def path(bucket: str, open_once: Callable[[str], RemotePath]) -> RemotePath:
    return open_once(f"s3://{bucket}/a b")


@pytest.fixture
def log(tmp_path: Path) -> UploadLog:
    return UploadLog(tmp_path / "uploads.json")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small"
    file.write_bytes(b"answers")
    return file


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_parts, "PART_BYTES", PART_BYTES)
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(LARGE)
    return file


class Calls:
    """S3 calls, before each of which something may happen; ``before`` may raise in its place."""

    def __init__(self, path: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: Callable[[str, dict[str, Any]], None] = lambda method, arguments: None
        self._lock = threading.Lock()
        self._call = path.filesystem.call_s3
        monkeypatch.setattr(path.filesystem, "call_s3", self, raising=False)

    def __call__(self, method: str, **arguments: Any) -> Any:
        with self._lock:
            self.before(method, arguments)
        return self._call(method, **arguments)


def put(source: Path, path: RemotePath, expected: str | None, log: UploadLog) -> tuple[str, int]:
    """The new version, and how many bytes were counted."""
    counted = [0]
    version = put_object(source, path, expected, log, counted.append)
    return version, sum(counted)


@pytest.mark.parametrize("name", ["small", "large"])
def test_only_in_the_place_of_what_is_expected(
    name: str, path: RemotePath, log: UploadLog, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(name)
    first, counted = put(source, path, None, log)
    assert counted == source.stat().st_size
    assert first == version_of(path)
    for expected in (None, '"other"'):
        with pytest.raises(ChangedError, match="was put by something else meanwhile"):
            put(source, path, expected, log)
    source.write_bytes(b"new")
    second, _ = put(source, path, first, log)
    assert second == version_of(path) != first and read_object(path) == b"new"


@pytest.mark.parametrize("name", ["small", "large"])
def test_s3_itself_sees_to_it(
    name: str,
    path: RemotePath,
    log: UploadLog,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Something is put between the last look and the put."""
    source: Path = request.getfixturevalue(name)
    calls = Calls(path, monkeypatch)

    def interfere(method: str, arguments: dict[str, Any]) -> None:
        if method in ("put_object", "complete_multipart_upload"):
            s3.client.put_object(Bucket=arguments["Bucket"], Key="a b", Body=b"precious")

    calls.before = interfere
    with pytest.raises(ChangedError):
        put(source, path, None, log)
    assert read_object(path) == b"precious"


def test_parts_that_are_there_are_not_sent_again(
    path: RemotePath, log: UploadLog, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(path, monkeypatch)
    monkeypatch.setattr(file_parts, "THREADS", 1)

    def cut_off(method: str, arguments: dict[str, Any]) -> None:
        if method == "upload_part" and arguments["PartNumber"] == 3:
            raise ConnectionResetError("Connection reset by peer")

    calls.before = cut_off
    with pytest.raises(RemoteError, match="Connection reset by peer"):
        put(large, path, None, log)
    assert version_of(path) is None
    sent = []

    def note(method: str, arguments: dict[str, Any]) -> None:
        assert method != "create_multipart_upload"
        if method == "upload_part":
            sent.append(arguments["PartNumber"])

    calls.before = note
    _, counted = put(large, path, None, UploadLog(log.path))  # of a process that comes later
    assert set(sent) in ({3}, {3, 4})
    assert counted == LARGE and read_object(path) == large.read_bytes()


@pytest.mark.parametrize("size", [7, LARGE])
def test_parts_of_another_file_are_given_up(
    size: int,
    path: RemotePath,
    log: UploadLog,
    large: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(path, monkeypatch)

    def cut_off(method: str, arguments: dict[str, Any]) -> None:
        if method == "complete_multipart_upload":
            raise ConnectionResetError("Connection reset by peer")

    calls.before = cut_off
    with pytest.raises(RemoteError):
        put(large, path, None, log)
    calls.before = lambda method, arguments: None
    large.write_bytes(b"1" * size)
    put(large, path, None, log)
    assert read_object(path) == large.read_bytes()
    bucket = path.path.partition("/")[0]
    assert not s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads")


class RefusalError(Exception):
    """What botocore raises."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 501}}


def test_a_store_without_conditional_writes(
    path: RemotePath, log: UploadLog, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(path, monkeypatch)

    def refuse(method: str, arguments: dict[str, Any]) -> None:
        if "IfNoneMatch" in arguments or "IfMatch" in arguments:
            raise OSError("not known here") from RefusalError("NotImplemented")

    calls.before = refuse
    put(small, path, None, log)
    with pytest.raises(ChangedError):
        put(small, path, None, log)
    small.write_bytes(b"new")
    put(small, path, version_of(path), log)
    assert read_object(path) == b"new"


def test_fetching(path: RemotePath, log: UploadLog, small: Path, tmp_path: Path) -> None:
    put(small, path, None, log)
    counted = [0]
    fetch_object(path, tmp_path / "fetched", counted.append)
    assert (tmp_path / "fetched").read_bytes() == b"answers" and sum(counted) == 7
    assert read_end(path, 3) == b"ers" and read_end(path, 100) == b"answers"
    remove_object(path)
    remove_object(path)
    assert read_object(path) is None and version_of(path) is None
    with pytest.raises(RemoteError, match="there is nothing there"):
        fetch_object(path, tmp_path / "fetched", counted.append)


def test_slow_lines_have_time(path: RemotePath) -> None:
    """And those of other file systems of the kind have as much as before."""
    slow, other = open_filesystem(path.url), open_filesystem(path.url)
    allow_slow_puts(slow)
    found = [each.filesystem.config_kwargs["read_timeout"] for each in (slow, other)]
    assert found == [300, READ_SECONDS]
    google = replace(path, url="gs://a/b", filesystem=SimpleNamespace(requests_timeout=20))
    allow_slow_puts(google)
    assert google.filesystem.requests_timeout == 300


def test_a_bucket_that_is_missing(path: RemotePath) -> None:
    check_writable(path)
    assert version_of(path) is None
    with pytest.raises(UsageError, match="there is no bucket missing; create it first"):
        check_writable(path.at("missing/a"))


def test_a_damaged_log_is_an_empty_one(log: UploadLog) -> None:
    for content in (b"", b"[]", b"{"):
        log.path.write_bytes(content)
        assert log.get("s3://a/b") is None
    log.set("s3://a/b", {"id": "1"})
    assert log.get("s3://a/b") == {"id": "1"}
    log.set("s3://a/b", None)
    assert log.get("s3://a/b") is None


def test_where_files_grow_under_their_names(
    tmp_path: Path, log: UploadLog, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is a file system: readers find the old or the new, never a part of it."""
    path = open_filesystem(f"file://{tmp_path}/store/out.parquet")
    folder = path.at(str(tmp_path / "store"))
    first, counted = put(small, path, None, log)
    assert counted == 7 and names_in(folder) == {"out.parquet": 7}
    with pytest.raises(ChangedError):
        put(small, path, None, log)
    with monkeypatch.context() as patch:
        patch.setattr(path.filesystem, "mv", lambda *_: 1 / 0)
        with pytest.raises(RemoteError):
            small.write_bytes(b"newer answers")
            put(small, path, first, log)
    assert read_object(path) == b"answers"
    put(small, path, first, log)
    assert read_object(path) == b"newer answers" and names_in(folder) == {"out.parquet": 13}
