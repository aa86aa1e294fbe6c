"""Output: schema, metadata, whole or not at all, and what a failing disk or reader does."""

from __future__ import annotations

import decimal
import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmbatch.errors import ErrorCode, OutputError
from vlmbatch.manifest.schema import (
    JSON_TEXT,
    RESERVED_COLUMNS,
    output_schema,
)
from vlmbatch.output import parquet_writer as writer_module
from vlmbatch.output.jsonl_writer import JsonlResultWriter
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.types import Result

PLAIN = output_schema(pa.schema([]))
DESIGN = (
    "row_index int64, id string, status string, text string, finish_reason string, "
    "prompt_tokens int32, image_tokens int32, completion_tokens int32, error_code string, "
    "error_message string"
)
ANSWER = Result(0, "a", "yes", "stop", 600, 576, 2, extra={"x": 1})
FAILURE = Result(
    1, "b", error_code=ErrorCode.IMAGE_MISSING, error_message="no file", extra={"x": None}
)


def write(path: Path, results, schema: pa.Schema = PLAIN, metadata=None) -> pa.Table:
    writer = ParquetResultWriter(path, schema, metadata or {})
    for result in results:
        writer.write(result)
    writer.close()
    return pq.read_table(path)


def test_schema_is_the_designs():
    columns = [tuple(column.split()) for column in DESIGN.split(", ")]
    assert [(field.name, str(field.type)) for field in PLAIN] == columns
    assert {name for name, _ in columns} == RESERVED_COLUMNS
    extra = pa.schema([("x", pa.list_(pa.int8()))])
    assert output_schema(extra).names == [*PLAIN.names, "x"]


def test_round_trip(tmp_path):
    schema = output_schema(pa.schema([("x", pa.int64())]))
    metadata = {"vlmbatch.model": "m", "vlmbatch.sampling": '{"stop": ["é"]}'}
    path = tmp_path / "out.parquet"
    table = write(path, [ANSWER, FAILURE], schema, metadata)
    expected = dict.fromkeys(PLAIN.names)
    assert table.to_pylist() == [
        expected
        | {"row_index": 0, "id": "a", "status": "ok", "text": "yes", "finish_reason": "stop"}
        | {"prompt_tokens": 600, "image_tokens": 576, "completion_tokens": 2, "x": 1},
        expected
        | {"row_index": 1, "id": "b", "status": "error", "error_code": "image_missing"}
        | {"error_message": "no file", "x": None},
    ]
    stored = pq.read_metadata(path).metadata
    assert {key: stored[key.encode()].decode() for key in metadata} == metadata
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_no_rows_give_the_full_schema(tmp_path):
    table = write(tmp_path / "out.parquet", [])
    assert table.num_rows == 0
    assert table.schema.equals(PLAIN)


@pytest.mark.parametrize(("rows", "size"), [(7, 2**30), (10**6, 2000)])
def test_row_groups_are_bounded(tmp_path, monkeypatch, rows, size):
    monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", rows)
    monkeypatch.setattr(writer_module, "_ROW_GROUP_BYTES", size)
    path = tmp_path / "out.parquet"
    table = write(path, [Result(n, str(n), "x" * 200) for n in range(50)])
    assert table["row_index"].to_pylist() == list(range(50))
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert max(groups) <= 8 and len(groups) >= 7


def test_json_text_column(tmp_path):
    schema = output_schema(pa.schema([pa.field("x", pa.string(), metadata=JSON_TEXT)]))
    values = ["text", 2**80, None, {"a": [1.5, None]}, float("inf")]
    table = write(
        tmp_path / "o.parquet",
        [Result(n, str(n), extra={"x": v}) for n, v in enumerate(values)],
        schema,
    )
    assert table["x"].to_pylist() == ['"text"', str(2**80), None, '{"a": [1.5, null]}', "null"]


def test_value_that_does_not_fit_loses_neither_row_nor_neighbours(tmp_path, caplog):
    schema = output_schema(pa.schema([("x", pa.int64())]))
    results = [Result(n, str(n), extra={"x": v}) for n, v in enumerate([1, "two", 3])]
    assert write(tmp_path / "o.parquet", results, schema)["x"].to_pylist() == [1, None, 3]
    assert "'two' does not fit the type int64" in caplog.text


def test_text_that_is_not_unicode_is_escaped(tmp_path):
    table = write(tmp_path / "o.parquet", [Result(0, "0", error_message="caf\udce9.jpg: gone")])
    assert table["error_message"].to_pylist() == ["caf\\udce9.jpg: gone"]


class TestCommit:
    def test_nothing_under_the_final_name_before_close(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", 1)
        path = tmp_path / "out.parquet"
        writer = ParquetResultWriter(path, PLAIN, {})
        writer.write(ANSWER)
        assert not path.exists() and len(list(tmp_path.iterdir())) == 1
        writer.close()
        assert list(tmp_path.iterdir()) == [path]

    def test_abort_leaves_nothing(self, tmp_path):
        writer = ParquetResultWriter(tmp_path / "out.parquet", PLAIN, {})
        writer.write(ANSWER)
        writer.abort()
        assert list(tmp_path.iterdir()) == []

    def test_abort_leaves_an_older_output(self, tmp_path):
        path = tmp_path / "out.parquet"
        write(path, [ANSWER])
        writer = ParquetResultWriter(path, PLAIN, {})
        writer.write(FAILURE)
        writer.abort()
        assert pq.read_table(path)["id"].to_pylist() == ["a"]

    def test_abort_after_close_keeps_the_output(self, tmp_path):
        path = tmp_path / "out.parquet"
        writer = ParquetResultWriter(path, PLAIN, {})
        writer.close()
        writer.abort()
        assert path.exists()

    def test_synced_before_it_gets_its_name(self, tmp_path, monkeypatch):
        path = tmp_path / "out.parquet"
        events: list[str] = []
        fsync, replace = os.fsync, Path.replace

        def noted(event: str, call: Callable[..., object], *arguments: object) -> object:
            events.append(event)
            return call(*arguments)

        monkeypatch.setattr(os, "fsync", lambda fd: noted("fsync", fsync, fd))
        monkeypatch.setattr(Path, "replace", lambda *each: noted("name", replace, *each))
        write(path, [ANSWER])
        assert events == ["fsync", "name", "fsync"]

    def test_permissions_are_the_users_choice(self, tmp_path):
        path = tmp_path / "out.parquet"
        previous = os.umask(0o027)
        try:
            write(path, [ANSWER])
        finally:
            os.umask(previous)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_rows_missing_on_reading_back(self, tmp_path, monkeypatch):
        path = tmp_path / "out.parquet"
        other = tmp_path / "other.parquet"
        write(other, [])
        empty = pq.read_metadata(other)
        monkeypatch.setattr("vlmbatch.output.parquet_writer.read_footer", lambda where: empty)
        writer = ParquetResultWriter(path, PLAIN, {})
        writer.write(ANSWER)
        with pytest.raises(OutputError, match="1 rows were written but 0 read back"):
            writer.close()
        assert not path.exists()


class TestFailure:
    def test_folder_missing(self, tmp_path):
        with pytest.raises(OutputError, match="No such file or directory") as caught:
            ParquetResultWriter(tmp_path / "none" / "out.parquet", PLAIN, {})
        assert caught.value.exit_status == 74

    @pytest.mark.parametrize("fails_at", ["write", "close"])
    def test_disk_full(self, tmp_path, monkeypatch, fails_at):
        monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", 1 if fails_at == "write" else 100)
        writer = ParquetResultWriter(tmp_path / "out.parquet", PLAIN, {})
        os.dup2(os.open("/dev/full", os.O_WRONLY), writer._tables._file.fileno())
        with pytest.raises(OutputError, match="No space left on device"):
            for _ in range(1000):
                writer.write(Result(0, "0", os.urandom(10_000).hex()))
            writer.close()
        writer.abort()
        assert list(tmp_path.iterdir()) == []


class TestJsonl:
    def test_lines(self):
        stream = io.BytesIO()
        writer = JsonlResultWriter(stream)
        writer.write(ANSWER)
        writer.write(FAILURE)
        writer.close()
        first, second = map(json.loads, stream.getvalue().splitlines())
        assert list(first) == [*PLAIN.names, "x"] == list(second)
        assert (first["text"], first["error_code"], first["x"]) == ("yes", None, 1)
        assert (second["text"], second["error_code"]) == (None, "image_missing")

    def test_each_line_is_visible_at_once(self, tmp_path):
        path = tmp_path / "out.jsonl"
        with path.open("wb") as stream:
            JsonlResultWriter(stream).write(ANSWER)
            assert path.read_bytes().endswith(b"\n")

    def test_values_that_json_lacks(self):
        scalar = pa.array([1], pa.int64()).cast(pa.timestamp("ns"))[0]
        nested = {"t": scalar, "l": [scalar], "m": [("k", scalar)]}
        extra = {"b": b"\xff", "n": float("nan"), "l": [{"i": -float("inf")}], "t": scalar}
        extra |= {"d": decimal.Decimal("1.50"), "s": nested, "u": "é\n\udce9"}
        stream = io.BytesIO()
        JsonlResultWriter(stream).write(Result(0, "0", extra=extra))
        values = json.loads(stream.getvalue())
        time = "1970-01-01 00:00:00.000000001"
        assert {key: values[key] for key in extra} == {
            "b": "/w==",
            "n": None,
            "l": [{"i": None}],
            "t": time,
            "d": "1.50",
            "s": {"t": time, "l": [time], "m": [["k", time]]},
            "u": "é\n?",
        }

    def test_closed_pipe_is_the_callers(self):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):  # noqa: PTH123
            JsonlResultWriter(stream).write(ANSWER)

    def test_full_disk(self):
        with open("/dev/full", "wb", buffering=0) as stream:  # noqa: PTH123, SIM117
            with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
                JsonlResultWriter(stream).write(ANSWER)
