"""The parts of a run together: what is missing, what is not of it, and how they are joined."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import Part
from vlmbatch.errors import UnfinishedError, UsageError
from vlmbatch.jobs.merge import merge
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output import parquet_writer as writer_module
from vlmbatch.output.all_parts import all_parts, numbers_text
from vlmbatch.output.parquet_writer import ParquetResultWriter, row_groups
from vlmbatch.output.parts import PART_KEY, PartInfo, finished_part, read_part
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

SETTINGS = {"limit": None, "sampling": {"seed": 0}}
NUM_ROWS = 10
COUNT = 3


def write_part(
    folder: Path, number: int, first: int, end: int, fingerprint: str = "f", **settings: Any
) -> Path:
    part = Part(number, COUNT)
    about = (number, COUNT, first, NUM_ROWS, "m.jsonl", "2026-11-29T00:00:00+00:00")
    metadata = {
        RUN_ID_KEY: f"{number:032x}",
        FINGERPRINT_KEY: fingerprint,
        **PartInfo(*about, {**SETTINGS, **settings}).metadata(),
    }
    path = folder / part.file_name
    writer = ParquetResultWriter(path, RESULT_SCHEMA, metadata, first_row=first)
    for index in range(end - first):
        writer.write(Result(index, f"{first + index}", "yes", "stop", 5, 0, 1))
    writer.close()
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, (first, end) in enumerate([(0, 3), (3, 6), (6, 10)]):
        write_part(folder, number, first, end)
    return folder


def test_what_is_there(parts: Path) -> None:
    assert [part.rows for part in all_parts(parts)] == [range(3), range(3, 6), range(6, 10)]
    stats = RunStats()
    merge(parts, parts.parent / "merged.parquet", stats)
    table = pq.read_table(parts.parent / "merged.parquet")
    assert table["row_index"].to_pylist() == list(range(NUM_ROWS))
    assert PART_KEY.encode() not in table.schema.metadata
    assert (stats.rows_total, stats.rows_done) == (NUM_ROWS, NUM_ROWS)


def test_a_part_is_finished_for_its_rows_and_settings_alone(parts: Path) -> None:
    found = finished_part(parts, Part(1, COUNT), "f", range(3, 6))
    assert found is not None and found.run_id == f"{1:032x}"
    assert finished_part(parts, Part(1, COUNT), "g", range(3, 6)) is None
    assert finished_part(parts, Part(1, COUNT), "f", range(3, 7)) is None
    assert finished_part(parts, Part(1, 4), "f", range(3, 6)) is None


def rename(parts: Path) -> None:
    (parts / Part(1, COUNT).file_name).rename(parts / Part(2, COUNT).file_name)


def other_count(parts: Path) -> None:
    (parts / Part(0, 5).file_name).touch()


def swap_rows(parts: Path) -> None:
    path = parts / Part(2, COUNT).file_name
    table = pq.read_table(path)
    pq.write_table(table.sort_by([("row_index", "descending")]), path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda parts: (parts / Part(1, COUNT).file_name).unlink(), "1 of 3 .*: 1. Run"),
    "under another name": (rename, "part-00002-of-00003.parquet is damaged, or was not written"),
    "damaged": (lambda parts: (parts / Part(0, COUNT).file_name).write_bytes(b"x"), "is damaged"),
    "of two runs": (lambda parts: write_part(parts, 1, 3, 6, "g", limit=7), "limit: none -> 7"),
    "a row twice": (lambda parts: write_part(parts, 1, 2, 6), "begins with row 2, expected 3"),
    "a row lost": (lambda parts: write_part(parts, 1, 3, 5), "begins with row 6, expected 5"),
    "too few": (lambda parts: write_part(parts, 2, 6, 9), "have 9 rows, expected the 10"),
    "of two numbers of parts": (other_count, "a run in 3 parts and of one in 5 parts"),
    "changed": (swap_rows, "was changed by something else"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_joined(parts: Path, name: str) -> None:
    change, message = WRONG[name]
    change(parts)
    output = parts.parent / "merged.parquet"
    with pytest.raises((UsageError, UnfinishedError), match=message) as caught:
        merge(parts, output, RunStats())
    assert caught.value.exit_status == (1 if name == "missing" else 2)
    assert not output.exists()
    assert not [path for path in parts.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"number": 0}', "no JSON"])
def test_a_file_that_says_nothing_of_a_part(tmp_path: Path, text: str) -> None:
    path = tmp_path / Part(0, COUNT).file_name
    writer = ParquetResultWriter(path, RESULT_SCHEMA, {RUN_ID_KEY: "0" * 32, PART_KEY: text})
    writer.close()
    assert read_part(path) is None


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20), st.integers(1, 400))
def test_row_groups_have_all_rows_in_order(sizes: list[int], rows: int, size: int) -> None:
    numbers = pa.chunked_array([pa.array(range(sum(sizes)), pa.int64())])
    table = pa.table({"n": numbers})
    tables, start = [], 0
    for length in sizes:
        tables.append(table.slice(start, length))
        start += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_ROW_GROUP_ROWS", rows)
        patch.setattr(writer_module, "_ROW_GROUP_BYTES", size)
        groups = list(row_groups(iter(tables)))
    assert [n for group in groups for n in group["n"].to_pylist()] == list(range(sum(sizes)))
    assert all(0 < group.num_rows <= rows for group in groups)
    if size > 8 * rows:
        assert all(group.num_rows == rows for group in groups[:-1])


@given(st.sets(st.integers(0, 40)))
def test_numbers_in_words(numbers: set[int]) -> None:
    text = numbers_text(sorted(numbers))
    ranges = [list(map(int, piece.split("-"))) for piece in text.split(", ") if piece]
    assert sorted(numbers) == [
        n for low, *high in ranges for n in range(low, (high or [low])[0] + 1)
    ]
    assert all(later[0] > earlier[-1] + 1 for earlier, later in itertools.pairwise(ranges))


def test_settings_survive_as_they_are(parts: Path) -> None:
    part = read_part(parts / Part(0, COUNT).file_name)
    assert part is not None
    assert part.record().settings == json.loads(json.dumps(SETTINGS))
