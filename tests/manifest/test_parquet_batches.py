"""Parquet batches: few megabytes at a time, whatever is encoded once and shown a thousand times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fast_command import FastCommands
from fuzzing import ERROR_ROWS, MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode
from vlmbatch.manifest import parquet_batches
from vlmbatch.manifest.arrow_values import ValueReader
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.parquet_batches import BatchReader
from vlmbatch.types import Row

MEBIBYTE = 2**20
NO_LIMIT = 2**30  # of a dictionary's bytes, with which other writers have no patience either


def encoded(values: list[bytes], rows: list[int], form: str) -> pa.Array:
    """The images of ``rows`` as a column that is not decoded here either."""
    column = pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(values))
    if form != "bytes":
        labels = pa.nulls(len(rows), pa.string())
        column = pa.StructArray.from_arrays([column, labels], ["bytes", "path"])
    if form == "list":
        column = pa.ListArray.from_arrays(list(range(len(rows) + 1)), column)
    return column


def manifest(path: Path, values: list[bytes], rows: list[int], form: str = "bytes") -> Path:
    columns = {"prompt": ["<image>Hello."] * len(rows), "image": encoded(values, rows, form)}
    pq.write_table(pa.table(columns), path, dictionary_pagesize_limit=NO_LIMIT, compression="zstd")
    return path


def read(path: Path) -> list[Row]:
    return list(open_manifest(ManifestConfig(str(path)), SamplingParams()).rows())


@pytest.mark.parametrize(
    ("size", "form"),
    [
        (929_000, "bytes"),
        (929_000, "struct"),
        (929_000, "list"),
        pytest.param(20 * MEBIBYTE, "bytes", id="a file of 2 KB"),
    ],
)
def test_a_thousand_rows_with_one_image(
    commands: FastCommands, size: int, form: str, tmp_path: Path
) -> None:
    path = manifest(tmp_path / "m.parquet", [b"\x89" * size], [0] * 1024, form)
    assert path.stat().st_size < 10_000
    command = commands.run("validate", path, "-m", MODEL)
    assert command.wait() == ERROR_ROWS, command.stderr
    assert "1,024" in command.stderr and "not an image" in command.stderr
    assert command.memory_taken < 205 * MEBIBYTE


@pytest.mark.parametrize("form", ["bytes", "struct", "list"])
def test_rows_share_what_their_dictionary_holds_once(form: str, tmp_path: Path) -> None:
    photos = [bytes([number]) * MEBIBYTE for number in range(3)]
    rows = read(manifest(tmp_path / "m.parquet", photos, [0, 1, 2] * 20, form))
    data = [row.images[0].data for row in rows]
    assert data == photos * 20
    assert len(set(map(id, data))) == 3


@pytest.mark.parametrize("spread", ["begins with small ones", "ends with small ones"])
def test_a_long_value_among_many_short_ones(spread: str, tmp_path: Path) -> None:
    """Not worth reading as a dictionary; but then each of many rows may have the long value."""
    values = [b"%d" % number for number in range(2500)] + [bytes(8 * MEBIBYTE)]
    rows = [*range(2500), *[2500] * 500]
    path = manifest(tmp_path / "m.parquet", values, rows if "begins" in spread else rows[::-1])
    with BatchReader(lambda paths: pq.ParquetFile(path, read_dictionary=list(paths))) as reader:
        sizes = []
        for batch in reader.batches(0, ["image"]):
            assert batch.nbytes < 80 * MEBIBYTE
            sizes.append(batch.num_rows)
            if len(sizes) == 50:
                break
    assert max(sizes) == 7


@pytest.mark.parametrize("encoding", ["fixed", "DELTA_BYTE_ARRAY"])
def test_other_encodings_that_keep_equal_values_once(encoding: str, tmp_path: Path) -> None:
    path, image = tmp_path / "m.parquet", bytes(MEBIBYTE)
    kind = pa.binary(MEBIBYTE) if encoding == "fixed" else pa.binary()
    how = {} if encoding == "fixed" else {"column_encoding": {"image": encoding}}
    pq.write_table(
        pa.table({"image": pa.array([image] * 200, kind)}),
        path,
        use_dictionary=encoding == "fixed",
        write_batch_size=10,
        compression="zstd",
        **how,
    )
    assert path.stat().st_size < 100_000
    with BatchReader(lambda paths: pq.ParquetFile(path)) as reader:
        sizes = [batch.num_rows for batch in reader.batches(0, ["image"])]
    assert sum(sizes) == 200 and max(sizes) <= 8


def test_batches_begin_small_and_grow_with_what_rows_take(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    long = [list(range(10_000))] * 500
    pq.write_table(pa.table({"short": [1] * 10_500, "list": [[]] * 10_000 + long}), path)
    with BatchReader(lambda paths: pq.ParquetFile(path)) as reader:
        sizes = [batch.num_rows for batch in reader.batches(0, ["short"])]
        assert sizes[:13] == [2**power for power in range(13)]
        assert set(sizes[13:-1]) <= {parquet_batches._BATCH_ROWS}
        sizes = [batch.num_rows for batch in reader.batches(0, ["short", "list"])]
    assert sum(sizes) == 10_500
    starts = np.cumsum([0, *sizes[:-1]])
    assert max(size for size, start in zip(sizes, starts, strict=True) if start > 9000) < 500
    assert sizes[-1] <= 20, "8 MB of Python's integers"


def test_a_chunk_that_goes_on_without_its_dictionary(tmp_path: Path) -> None:
    """As a dictionary array it would grow by every further value."""
    photos = [bytes([number % 256, number // 256]) * 10_000 for number in range(1500)]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": ["p"] * 1500, "image": photos}), path, write_batch_size=100)
    chunk = pq.read_metadata(path).row_group(0).column(1)
    assert chunk.has_dictionary_page and chunk.total_uncompressed_size > 28 * MEBIBYTE
    with BatchReader(lambda paths: pq.ParquetFile(path, read_dictionary=list(paths))) as reader:
        for batch in reader.batches(0, ["prompt", "image"]):
            assert batch.nbytes < 10 * MEBIBYTE
            assert batch.schema.field("image").type == pa.binary()
    assert [row.images[0].data for row in read(path)] == photos


def test_a_footer_that_hides_what_comes_after_the_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [bytes([number % 256, number // 256]) * 10_000 for number in range(1500)]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": ["p"] * 1500, "image": photos}), path, write_batch_size=10)
    declares_little = lambda dictionary, chunk: True  # noqa: E731
    monkeypatch.setattr(parquet_batches, "_is_shared", declares_little)
    rows = read(path)
    assert len(rows) == 1500
    bad = [row.index for row in rows if row.error is not None]
    assert 50 < bad[0] < 500 and bad == list(range(bad[0], 1500))
    assert rows[-1].error is not None
    assert rows[-1].error.code is ErrorCode.MANIFEST_LINE_INVALID
    assert "more than the footer declares" in rows[-1].error.message


def test_a_chunk_whose_path_is_no_text_is_read_by_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": ["p"] * 9, "image": [b"x"] * 9}), path)
    content = path.read_bytes()
    # The footer names a column in its schema, and then in each row group's chunk of it.
    chunk = content.rindex(b"image", 0, content.rindex(b"ARROW:schema"))
    path.write_bytes(content[:chunk] + b"\x80" + content[chunk + 1 :])
    with pytest.raises(UnicodeDecodeError):
        _ = pq.ParquetFile(path).metadata.row_group(0).column(1).path_in_schema
    assert [row.images[0].data for row in read(path)] == [b"x"] * 9


@pytest.mark.parametrize("names", [["id", "image"], ["image.path", "id", "image"], ["list", "id"]])
def test_columns_in_any_order(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    image = {"bytes": b"x" * 100, "path": "a"}
    columns: dict[str, list[Any]] = {
        "image": [image] * 9,
        "list": [[1, 2]] * 9,
        "id": [*"abcdefghi"],
        "n": [1] * 9,
    }
    pq.write_table(pa.table(columns), path)
    with BatchReader(lambda paths: pq.ParquetFile(path, read_dictionary=list(paths))) as reader:
        read = [
            dict(zip(batch.schema.names, row, strict=True))
            for batch in reader.batches(0, names)
            for row in zip(*map(ValueReader().column, batch.schema.names, batch), strict=True)
        ]
    wanted = [name for name in columns if name in names]
    assert read == [{name: columns[name][row] for name in wanted} for row in range(9)]


VALUES = st.sampled_from([None, b"", b"a", b"b" * 300, b"\xff" * 70_000])
ITEMS = st.lists(VALUES, max_size=3) | st.none()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_values_are_the_same_with_dictionaries_and_without(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "b": VALUES,
                    "s": st.none()
                    | st.fixed_dictionaries({"x": VALUES, "l": ITEMS, "n": st.integers(0, 3)}),
                    "m": st.none() | st.lists(st.tuples(st.text("ab", max_size=2), VALUES)),
                }
            ),
            min_size=1,
            max_size=40,
        )
    )
    rows *= data.draw(st.integers(1, 5))
    schema = pa.schema(
        {
            "b": pa.binary(),
            "s": pa.struct({"x": pa.binary(), "l": pa.list_(pa.large_binary()), "n": pa.int8()}),
            "m": pa.map_(pa.string(), pa.binary()),
        }
    )
    path = tmp_path_factory.mktemp("m") / "m.parquet"
    pq.write_table(
        pa.Table.from_pylist(rows, schema),
        path,
        row_group_size=data.draw(st.integers(1, 60)),
        dictionary_pagesize_limit=data.draw(st.sampled_from([100, MEBIBYTE])),
        write_batch_size=data.draw(st.integers(1, 20)),
        use_dictionary=data.draw(st.booleans()),
        data_page_size=data.draw(st.sampled_from([100, MEBIBYTE])),
    )
    out = []
    with BatchReader(lambda paths: pq.ParquetFile(path, read_dictionary=list(paths))) as reader:
        for group in range(reader.metadata.num_row_groups):
            values = ValueReader()
            for batch in reader.batches(group, reader.names):
                columns = map(values.column, batch.schema.names, batch.columns)
                out += [
                    dict(zip(batch.schema.names, row, strict=True))
                    for row in zip(*columns, strict=True)
                ]
    assert out == rows
