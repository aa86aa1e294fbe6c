"""Pages and lists of errors at URLs: put whole, over nothing that came meanwhile, or kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from in_process import call
from model_folder import make_model_folder
from s3_server import S3Server

from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.remote.stored_file import StoredFile
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.stats import RunStats


@pytest.fixture(scope="module")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], int]:
    """Check two rows, of which one is bad, and write its error there."""
    folder = tmp_path_factory.mktemp("rows")
    model = make_model_folder(folder / "model")
    (folder / "m.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": 7}\n')
    return lambda errors: call(["validate", folder / "m.jsonl", "-m", model, "--errors", errors])


def test_errors(
    validate: Callable[[object], int], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """What is there is replaced, as a file of this machine is."""
    url, here = f"s3://{bucket}/a/errors.jsonl", tmp_path / "errors.jsonl"
    s3.client.put_object(Bucket=bucket, Key="a/errors.jsonl", Body=b"earlier")
    assert validate(here) == validate(url) == 1
    assert s3.read(bucket, "a/errors.jsonl") == here.read_bytes()
    assert json.loads(here.read_text())["error_code"] == "prompt_invalid"


def test_a_put_that_is_forbidden_in_the_end(
    validate: Callable[[object], int],
    s3: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A 403 that the store did not tell of at the beginning."""
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem

    asked = S3FileSystem.call_s3

    def refuse(filesystem: S3FileSystem, method: str, **arguments: object) -> object:
        if method == "put_object":
            status = {"HTTPStatusCode": 403}
            error = {"Code": "AccessDenied", "Message": "Access Denied"}
            raise ClientError({"Error": error, "ResponseMetadata": status}, "PutObject")
        return asked(filesystem, method, **arguments)

    monkeypatch.setattr(S3FileSystem, "call_s3", refuse)
    url = f"s3://{bucket}/errors.jsonl"
    assert validate(url) == 74
    message = capfd.readouterr().err
    assert f"{url}: access is denied" in message
    kept = re.search(r"What could not be put is kept in (\S+\.jsonl)", message)
    assert kept is not None and "prompt_invalid" in Path(kept[1]).read_text()
    assert s3.keys(bucket) == {}


def test_a_page(
    s3: S3Server, bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, url = tmp_path / "out.parquet", f"s3://{bucket}/page.html"
    pq.write_table(RESULT_SCHEMA.empty_table(), output)
    report = ["report", output, "-o", url]
    assert call([*report[:-1], f"s3://{bucket}.html"]) == 2
    assert f"page s3://{bucket}.html names a bucket: give a file in it" in capfd.readouterr().err
    assert call(report) == 0
    page = s3.read(bucket, "page.html")
    assert page.startswith(b"<!doctype html>") and s3.keys(bucket) == {"page.html": len(page)}
    assert f"{url}: 0 of 0 rows" in capfd.readouterr().err
    assert call(report) == 2
    assert f"page {url} exists: add --overwrite to replace it" in capfd.readouterr().err
    s3.client.put_object(Bucket=bucket, Key="page.html", Body=b"earlier")
    compare = ["compare", output, output, "-o", url, "--overwrite", "-q"]
    assert call(compare) == 0
    assert s3.read(bucket, "page.html").startswith(b"<!doctype html>")


@pytest.fixture
def stored() -> StoredFile:
    """A file in fsspec's store in memory, of a name that no file here could have."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    return StoredFile.at("page p", open_filesystem(f"memory://bucket/{'é' * 300}.html"))


def test_what_was_put_meanwhile_is_left(stored: StoredFile) -> None:
    filesystem, path = stored.place.filesystem, stored.place.path
    with pytest.raises(UsageError, match=r"put by something else since .* is kept in") as caught:  # noqa: SIM117
        with stored.written(RunStats()) as file:
            file.write_text("page")
            filesystem.pipe_file(path, b"other")
    kept = Path(str(caught.value).rpartition(" ")[2])
    assert (kept, kept.read_text(), kept.suffix) == (file, "page", ".html")
    assert filesystem.cat_file(path) == b"other"


def test_a_store_that_fails_for_a_while(
    stored: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that takes the file, and whose answer is lost."""
    monkeypatch.setattr("vlmbatch.remote.puts.PAUSES_S", (0, 0))
    filesystem = stored.place.filesystem
    move, failures = filesystem.mv, [ConnectionError("reset"), ConnectionError("reset")]

    def fail(source: str, target: str) -> None:
        if len(failures) == 1:
            move(source, target)
        if failures:
            raise failures.pop()
        move(source, target)

    monkeypatch.setattr(filesystem, "mv", fail)
    stats = RunStats()
    with stored.written(stats) as file:
        file.write_text("page")
    assert filesystem.cat_file(stored.place.path) == b"page" and not failures
    assert stats.transfer is None and not file.parent.exists()


def _fail() -> None:
    raise OutputError("no room")


def test_a_command_that_fails_puts_nothing(stored: StoredFile) -> None:
    with pytest.raises(OutputError, match="no room"), stored.written(RunStats()) as file:
        file.write_text("half")
        _fail()
    assert not file.parent.exists()
    assert not stored.place.filesystem.exists(stored.place.path)
