"""Parts of a manifest: together all of its rows, each once, in order, as the whole gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, Part, SamplingParams
from vlmbatch.errors import ConfigError, ManifestError
from vlmbatch.manifest.division import rows_of_part, uses_within
from vlmbatch.manifest.image_uses import ImageUses
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest

# Runs of rows with one image, and rows without any; an image may come back.
IMAGES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.integers(1, 12)), max_size=15
).map(lambda runs: [image for image, count in runs for _ in range(count)])
COUNTS = st.integers(1, 40)


def last_uses(images: list[str | None]) -> Any:
    uses = ImageUses()
    for image in images:
        uses.add(image)
    return uses.last_uses()


def parts_of(count: int) -> list[Part]:
    return [Part(number, count) for number in range(count)]


@given(IMAGES, COUNTS)
def test_parts_have_every_row_once_in_order(images: list[str | None], count: int) -> None:
    ranges = [rows_of_part(part, len(images), last_uses(images)) for part in parts_of(count)]
    assert [row for rows in ranges for row in rows] == list(range(len(images)))
    size = len(images) / count
    assert all(abs(len(rows) - size) < 1 + size / 4 for rows in ranges)


@given(IMAGES, COUNTS)
def test_a_boundary_divides_an_image_only_where_it_goes_on(
    images: list[str | None], count: int
) -> None:
    reach = len(images) // (4 * count)
    for part in parts_of(count)[1:]:
        row = rows_of_part(part, len(images), last_uses(images)).start
        if 0 < row < len(images) and images[row] is not None and images[row - 1] == images[row]:
            begin = row - 1
            assert all(image == images[begin] for image in images[begin : row + reach + 1])


@given(IMAGES, st.integers(0, 60), st.integers(0, 60))
def test_uses_of_a_part_are_those_of_its_rows_alone(
    images: list[str | None], start: int, length: int
) -> None:
    rows = range(len(images))[start : start + length]
    expected = last_uses([images[row] for row in rows])
    found = uses_within(last_uses(images), rows)
    assert (found is None) == (expected is None)
    assert found is None or np.array_equal(found, expected)


def test_rows_of_one_image_after_another_stay_together() -> None:
    images = [f"{row // 8}" for row in range(8 * 100)]
    starts = [rows_of_part(part, 800, last_uses(images)).start for part in parts_of(7)]
    assert all(start % 8 == 0 for start in starts)


@pytest.mark.parametrize(("number", "count"), [(4, 4), (5, 4), (-1, 4), (0, 0), (0, 100_000)])
def test_there_is_no_such_part(number: int, count: int) -> None:
    with pytest.raises(ConfigError, match=f"got {number}/{count}"):
        Part(number, count)


ROWS = [
    {"prompt": f"<image>{row}", "image": f"{row // 5}.png", "n": row, "temperature": 1.0}
    for row in range(53)
]


def write_rows(folder: Path, kind: str) -> Path:
    """The rows as a manifest of some kind."""
    lines = [json.dumps(row) + "\n" for row in ROWS]
    lines[20] = "{broken\n"
    if kind == "jsonl":
        (folder / "m.jsonl").write_text("".join(lines) + "\n\n")
        return folder / "m.jsonl"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "m.parquet", row_group_size=7)
        return folder / "m.parquet"
    for number, (start, stop) in enumerate(pairwise([0, 10, 10, 37, 53])):
        partition = folder / f"m/day={number}"
        partition.mkdir(parents=True)
        if kind == "folder of jsonl":
            (partition / "rows.jsonl").write_text("".join(lines[start:stop]))
        else:
            table = pa.Table.from_pylist(ROWS).slice(start, stop - start)
            pq.write_table(table, partition / "rows.parquet", row_group_size=9)
    return folder / "m"


def scanned(path: Path, limit: int | None = None) -> Manifest:
    config = ManifestConfig(str(path), keep_inputs=True, limit=limit)
    manifest = open_manifest(config, SamplingParams(seed=3))
    manifest.scan()
    return manifest


@pytest.mark.parametrize("limit", [None, 38])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder of jsonl", "folder of parquet"])
def test_rows_of_parts_are_those_of_the_whole(tmp_path: Path, kind: str, limit: int | None) -> None:
    """With their ids, seeds, lines and columns; numbered from 0 in each part."""
    path = write_rows(tmp_path, kind)
    whole = scanned(path, limit)
    expected, kept = list(whole.rows()), list(whole.kept_inputs())
    assert len(expected) == (limit or 53)
    for count in (1, 4, 60):
        rows, inputs = [], []
        for part in parts_of(count):
            manifest = scanned(path, limit)
            span = manifest.select(part)
            found = list(manifest.rows())
            assert [row.index for row in found] == list(range(len(span)))
            rows += [replace(row, index=row.index + span.start) for row in found]
            kept_of_part = manifest.kept_inputs()
            inputs += [next(kept_of_part) for _ in span]
            assert manifest.last_image_uses is None or len(manifest.last_image_uses) == len(span)
        assert [repr(row) for row in rows] == [repr(row) for row in expected]
        assert inputs == kept[: len(expected)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_part_of_a_manifest_that_changes_after_its_scan(tmp_path: Path, kind: str) -> None:
    path = write_rows(tmp_path, kind)
    manifest = scanned(path)
    manifest.select(Part(1, 2))
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(manifest.rows())
