"""Parquet manifests: embedded images, kept types, broken files."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import itertools
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError
from vlmbatch.manifest import parquet_batches, stored_types
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.schema import output_schema
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.types import ImageRef, Result


def opened(path: Path, **options) -> Manifest:
    return open_manifest(ManifestConfig(str(path), **options), SamplingParams())


def written(path: Path, columns, **options) -> Path:
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def passed_through(manifest: Manifest, output: Path) -> pa.Table:
    """The manifest's other columns after a run that answers nothing."""
    info = manifest.scan()
    writer = ParquetResultWriter(output, output_schema(info.extra_schema), {})
    for row in manifest.rows():
        writer.write(Result(row.index, row.id, extra=row.extra))
    writer.close()
    return pq.read_table(output).select(info.extra_schema.names)


@pytest.mark.parametrize("order", list(itertools.permutations(["image", "id", "prompt"])))
@pytest.mark.parametrize("labelled", [True, False])
def test_columns_in_any_order(tmp_path, order, labelled):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"abc", "path": "a.jpg"}] * 40 if labelled else ["a.jpg"] * 40
    columns = {
        "image": pa.array(images, struct if labelled else pa.string()),
        "id": pa.array(range(40)),
        "prompt": pa.array(["p"] * 40),
    }
    manifest = opened(written(tmp_path / "m.parquet", {name: columns[name] for name in order}))
    assert manifest.scan().num_rows == 40
    assert [(row.id, row.prompt) for row in manifest.rows()] == [(str(i), "p") for i in range(40)]
    assert manifest.last_image_uses.tolist() == [39] * 40


def test_embedded_images_and_paths(tmp_path):
    image = pa.array(
        [{"bytes": b"abc", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    path = written(tmp_path / "m.parquet", {"prompt": ["p", "q", "r"], "image": image})
    manifest = opened(path)
    info = manifest.scan()
    assert (info.num_rows, info.extra_schema.names) == (3, [])
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    rows = list(manifest.rows())
    assert [row.line for row in rows] == [1, 2, 3]
    assert [row.images for row in rows] == [
        (ImageRef("a.jpg", b"abc"),),
        (ImageRef(str(tmp_path / "b.jpg")),),
        (),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([b"abc"]), (ImageRef(data=b"abc"),)),
        (pa.array([b"abc"], pa.large_binary()), (ImageRef(data=b"abc"),)),
        (pa.array([["a.jpg", "b.jpg"]]), (ImageRef("a.jpg"), ImageRef("b.jpg"))),
        (pa.array([[{"bytes": b"x"}]]), (ImageRef(data=b"x"),)),
        (pa.array([None]), ()),
    ],
)
def test_forms_of_an_image(tmp_path, monkeypatch, values, expected):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "m.parquet", {"prompt": ["p"], "image": values})
    (row,) = opened(Path("m.parquet")).rows()
    assert (row.error, row.images) == (None, expected)


def test_messages_and_sampling(tmp_path):
    messages = [[{"role": "user", "content": "hello"}], None]
    columns = {"messages": messages, "prompt": [None, "p"], "max_tokens": [5.0, None]}
    rows = list(opened(written(tmp_path / "m.parquet", columns)).rows())
    assert [row.error for row in rows] == [None, None]
    assert rows[0].messages == messages[0]
    assert [row.sampling.max_tokens for row in rows] == [5, 256]


def test_other_columns_keep_their_types(tmp_path):
    nanoseconds = pa.array([1, None], pa.int64()).cast(pa.timestamp("ns"))
    columns = pa.table(
        {
            "prompt": ["p", "q"],
            "i8": pa.array([1, None], pa.int8()),
            "u64": pa.array([2**64 - 1, None], pa.uint64()),
            "f32": pa.array([0.1, None], pa.float32()),
            "nan": pa.array([float("nan"), None]),
            "day": [datetime.date(2024, 2, 29), None],
            "nanoseconds": nanoseconds,
            "far": pa.array([2**50, None], pa.int64()).cast(pa.timestamp("s")),
            "duration": pa.array([7, None], pa.int64()).cast(pa.duration("ns")),
            "nested": pa.StructArray.from_arrays([nanoseconds], ["time"]),
            "times": pa.array([[1], None], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("ns"))),
            "price": [decimal.Decimal("1.25"), None],
            "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
            "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
            "bytes": [b"\xff", None],
            "large": pa.array(["a", None], pa.large_string()),
            "nothing": pa.nulls(2),
        }
    )
    table = passed_through(
        opened(written(tmp_path / "m.parquet", columns)), tmp_path / "out.parquet"
    )
    expected = pq.read_table(tmp_path / "m.parquet").drop_columns(["prompt"])
    assert table.schema.equals(expected.schema)
    for name in table.schema.names:
        if name != "nan":
            assert table[name].equals(expected[name]), name


def test_dictionary_becomes_its_values(tmp_path):
    labels = pa.array(["a", "b", "a", None]).dictionary_encode()
    path = written(tmp_path / "m.parquet", {"prompt": ["p"] * 4, "label": labels})
    table = passed_through(opened(path), tmp_path / "out.parquet")
    assert table["label"].to_pylist() == ["a", "b", "a", None]
    assert table.schema.field("label").type == pa.string()


def test_many_row_groups_and_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_batches, "_BATCH_BYTES", 100)
    columns = {"prompt": [str(n) for n in range(100)], "id": [f"r{n}" for n in range(100)]}
    manifest = opened(written(tmp_path / "m.parquet", columns, row_group_size=7))
    assert manifest.scan().num_rows == 100
    rows = list(manifest.rows())
    assert [(row.prompt, row.id, row.line) for row in rows] == [
        (str(n), f"r{n}", n + 1) for n in range(100)
    ]


def test_limit_hashes_only_what_it_reaches(tmp_path):
    columns = {"prompt": [str(n) for n in range(20)]}
    path = written(tmp_path / "m.parquet", columns, row_group_size=5, compression="none")
    before = opened(path, limit=5).scan().sha256
    content = bytearray(path.read_bytes())
    content[content.index(b"17")] ^= 1  # in the last row group
    path.write_bytes(content)
    manifest = opened(path, limit=5)
    assert manifest.scan().sha256 == before
    assert len(list(manifest.rows())) == 5
    content[content.index(b"\x01\x00\x00\x000")] ^= 1  # the length of the first row's prompt
    path.write_bytes(content)
    assert opened(path, limit=5).scan().sha256 != before


def test_duplicate_ids(tmp_path):
    columns = {"prompt": ["p"] * 3, "id": [5, 6, 5]}
    with pytest.raises(ManifestError, match=r'"5": .*m\.parquet:1 and .*m\.parquet:3'):
        opened(written(tmp_path / "m.parquet", columns)).scan()


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7.0, None, float("nan"), -0.0, 2.0**53]), ["7", "#1", "#2", "0", str(2**53)]),
        (pa.array([7.0, None], pa.float32()).cast(pa.float16()), ["7", "#1"]),
        (pa.array([decimal.Decimal(10**37), None], pa.decimal128(38, 0)), [str(10**37), "#1"]),
        (pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00")]), ["1.50", "2"]),
        (pa.array([UUID.bytes, None], pa.binary(16)).cast(pa.uuid()), [str(UUID), "#1"]),
        (pa.array([1, None], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001", "#1"]),
        (pa.array([0, None], pa.date32()), ["1970-01-01", "#1"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.nulls(2), ["#0", "#1"]),
    ],
)
def test_ids_of_other_types_than_text(tmp_path, ids, expected):
    columns = {"prompt": ["p"] * len(ids), "id": ids}
    manifest = opened(written(tmp_path / "m.parquet", columns))
    assert manifest.scan().num_rows == len(ids)
    rows = list(manifest.rows())
    assert [row.error for row in rows] == [None] * len(ids)
    assert [row.id for row in rows] == expected


@pytest.mark.parametrize(("value", "says"), [(0.5, "got 0.5"), (2.0**60, "may have been another")])
def test_floats_that_are_no_ids(tmp_path, value, says):
    (row,) = opened(written(tmp_path / "m.parquet", {"prompt": ["p"], "id": [value]})).rows()
    assert row.error is not None and says in row.error.message


def test_whole_numbers_are_one_id_whatever_their_type(tmp_path):
    written(tmp_path / "a.parquet", {"prompt": ["p"], "id": [5]})
    written(tmp_path / "b.parquet", {"prompt": ["p"], "id": [5.0]})
    with pytest.raises(ManifestError, match=r'"5": .*a\.parquet:1 and .*b\.parquet:1'):
        opened(tmp_path).scan()


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([b"a"]),
        pa.array([b"a"], pa.binary(1)),
        pa.array([True]),
        pa.array([1], pa.int8()).cast(pa.bool8()),
        pa.array([["a"]]),
        pa.array([{"a": "b"}]),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_without_a_text_are_refused(tmp_path, ids):
    path = written(tmp_path / "m.parquet", {"prompt": ["p"], "id": ids})
    with pytest.raises(ManifestError, match=r'm\.parquet: column "id" has the type .* cast it to'):
        opened(path).scan()


def test_sampling_in_decimals_and_with_nan(tmp_path):
    columns = {
        "prompt": ["p", "q"],
        "max_tokens": [decimal.Decimal(5), None],
        "temperature": pa.array([decimal.Decimal("0.5"), None]),
        "top_k": [float("nan"), 3.0],
        "top_p": [float("nan"), 0.5],
    }
    rows = list(opened(written(tmp_path / "m.parquet", columns)).rows())
    assert [row.error for row in rows] == [None, None]
    assert [row.sampling.max_tokens for row in rows] == [5, 256]
    assert [row.sampling.temperature for row in rows] == [0.5, 0.0]
    assert [row.sampling.top_k for row in rows] == [SamplingParams().top_k, 3]
    assert [row.sampling.top_p for row in rows] == [1.0, 0.5]


@pytest.mark.parametrize("around", ["struct", "list", "map"])
@pytest.mark.parametrize("column", ["x", "image"])
def test_fields_of_one_name_are_refused(tmp_path, column, around):
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array(["b"])], ["a", "a"])
    if around == "list":
        twice = pa.ListArray.from_arrays([0, 1], twice)
    elif around == "map":
        twice = pa.MapArray.from_arrays([0, 1], pa.array(["k"]), twice)
    path = written(tmp_path / "m.parquet", {"prompt": ["p"], column: twice})
    with pytest.raises(ManifestError, match=f'"{column}": two fields of a struct are called "a"'):
        opened(path).scan()


def test_extension_types_at_any_depth(tmp_path):
    ids = pa.array([UUID.bytes, None], pa.binary(16)).cast(pa.uuid())
    flags = pa.array([1, 5], pa.int8()).cast(pa.bool8())
    columns = {
        "prompt": ["p", "q"],
        "struct": pa.StructArray.from_arrays([ids, flags], ["u", "b"]),
        "list": pa.ListArray.from_arrays([0, 2, 2], ids),
        "flag": flags,
    }
    path = written(tmp_path / "m.parquet", columns)
    table = passed_through(opened(path), tmp_path / "out.parquet")
    assert table["struct"].to_pylist() == [{"u": UUID, "b": True}, {"u": None, "b": True}]
    assert table["list"].to_pylist() == [[UUID, None], []]
    assert table["flag"].to_pylist() == [True, True]
    kept = table.schema.field("list").type.value_type
    assert (kept, table.schema.field("flag").type) == (pa.uuid(), pa.bool_())


def test_a_type_that_cannot_be_written_ends_the_first_pass(tmp_path, monkeypatch):
    def refuses(*_):
        raise pa.ArrowNotImplementedError("no such type")

    stored_types.stored_type.cache_clear()
    monkeypatch.setattr(stored_types, "_check_writable", refuses)
    path = written(tmp_path / "m.parquet", {"prompt": ["p"], "x": [1]})
    with pytest.raises(ManifestError, match=r'm\.parquet: column "x" has the type int64'):
        opened(path).scan()


def test_files_whose_nested_times_differ_in_unit(tmp_path):
    for name, unit in {"a": "ms", "b": "us"}.items():
        time = pa.array([1000], pa.int64()).cast(pa.timestamp(unit))
        column = pa.StructArray.from_arrays([time, pa.array([[1]])], ["t", "l"])
        written(tmp_path / f"{name}.parquet", {"prompt": ["p"], "x": column})
    table = passed_through(opened(tmp_path), tmp_path / "out.parquet")
    assert [row["t"].microsecond for row in table["x"].to_pylist()] == [0, 1000]
    assert [row["t"].second for row in table["x"].to_pylist()] == [1, 0]


def test_reserved_name(tmp_path):
    path = written(tmp_path / "m.parquet", {"prompt": ["p"], "status": ["x"]})
    with pytest.raises(ManifestError, match=r'm\.parquet: column "status"'):
        opened(path).scan()


def test_column_named_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["p"])] * 2, names=["prompt", "prompt"])
    with pytest.raises(ManifestError, match='two columns are called "prompt"'):
        opened(written(tmp_path / "m.parquet", table)).scan()


def test_empty(tmp_path):
    path = written(tmp_path / "m.parquet", {"prompt": pa.array([], pa.string()), "x": [1][:0]})
    manifest = opened(path)
    info = manifest.scan()
    assert (info.num_rows, info.extra_schema.names, list(manifest.rows())) == (0, ["x"], [])


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda content: content[: len(content) // 2], "no valid footer"),
        (lambda content: content[:-4], "no valid footer"),
        (lambda content: b"", "no valid footer"),
        (lambda content: b"{}\n", "no valid footer"),
        (lambda content: b"PARE" + content[4:-4] + b"PARE", "is encrypted"),
    ],
)
def test_broken_file_is_refused(tmp_path, damage, cause):
    path = written(tmp_path / "m.parquet", {"prompt": ["p"] * 100})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ManifestError, match=rf"m\.parquet: .*{cause}"):
        opened(path).scan()


def test_damaged_row_group_gives_error_rows(tmp_path):
    columns = {"prompt": [f"prompt {n}" for n in range(30)]}
    path = written(tmp_path / "m.parquet", columns, row_group_size=10, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    manifest = opened(path)
    assert manifest.scan().num_rows == 30
    rows = list(manifest.rows())
    assert [row.index for row in rows] == list(range(30))
    assert [row.error is None for row in rows] == [True] * 10 + [False] * 10 + [True] * 10
    assert all(row.error.code is ErrorCode.MANIFEST_LINE_INVALID for row in rows[10:20])


def test_text_that_is_not_utf8_is_an_error_row(tmp_path):
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    rows = list(opened(written(tmp_path / "m.parquet", {"prompt": text})).rows())
    assert rows[0].prompt == "a"
    assert rows[1].error is not None and "not UTF-8" in rows[1].error.message


def test_inputs_of_types_that_python_lacks_are_error_rows(tmp_path):
    far = pa.array([2**62], pa.timestamp("us"))
    struct = pa.StructArray.from_arrays([far], ["t"])
    for name, column in {"prompt": far, "image": struct, "seed": far, "messages": struct}.items():
        columns = {"prompt": ["p"], name: column} if name != "messages" else {name: column}
        (row,) = opened(written(tmp_path / "m.parquet", columns)).rows()
        assert row.error is not None and "got " in row.error.message, name
        assert str(2**62) in row.error.message


def test_messages_may_hold_times(tmp_path):
    time = pa.array([1], pa.timestamp("ns"))
    message = pa.StructArray.from_arrays([pa.array(["user"]), time], ["role", "sent"])
    columns = {"messages": pa.ListArray.from_arrays([0, 1], message)}
    (row,) = opened(written(tmp_path / "m.parquet", columns)).rows()
    assert row.error is None
    assert row.messages == [{"role": "user", "sent": "1970-01-01 00:00:00.000000001"}]


def test_folder_whose_files_differ_a_little(tmp_path):
    written(tmp_path / "a.parquet", {"prompt": ["p"], "x": [1], "t": pa.nulls(1)})
    time = pa.array([1], pa.int64()).cast(pa.timestamp("ms"))
    written(tmp_path / "b.parquet", {"prompt": ["q"], "x": [0.5], "y": ["y"], "t": time})
    written(tmp_path / "c.parquet", {"prompt": ["r"], "t": time.cast(pa.timestamp("us"))})
    table = passed_through(opened(tmp_path), tmp_path / "out.parquet")
    assert table["x"].to_pylist() == [1.0, 0.5, None]
    assert table["y"].to_pylist() == [None, "y", None]
    moment = datetime.datetime(1970, 1, 1, 0, 0, 0, 1000)
    assert table["t"].to_pylist() == [None, moment, moment]


def test_folder_whose_files_contradict(tmp_path):
    written(tmp_path / "a.parquet", {"prompt": ["p"], "x": [1]})
    written(tmp_path / "b.parquet", {"prompt": ["p"], "x": ["a"]})
    with pytest.raises(ManifestError, match=r'"x" is int64 in .*a\.parquet but string in .*b\.par'):
        opened(tmp_path).scan()
