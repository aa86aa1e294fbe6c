"""Keys by which unchanged rows are known again in an edited manifest."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from failing_files import FaultyFiles, UnsyncedFiles
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import SamplingParams
from vlmbatch.data import row_keys as row_keys_module
from vlmbatch.data.row_keys import NO_KEY, RowKeys, RowKeyWriter, row_key
from vlmbatch.errors import ErrorCode, OutputError, RowError
from vlmbatch.types import ImageRef, Row

ROW = Row(
    0, "a", 1, "m.jsonl", "what?", None, (ImageRef("a.png"),), SamplingParams(seed=3), {"x": 1}
)
MESSAGES = [{"role": "user", "content": "what?"}]
SAMPLED = SamplingParams(seed=3, temperature=1.0)


def write(path: Path, keys: list[bytes]) -> RowKeys:
    writer = RowKeyWriter(path, UnsyncedFiles())
    for key in keys:
        writer.append(key)
    writer.close()
    return RowKeys.load(path)


@pytest.mark.parametrize(
    "same",
    [
        replace(ROW, index=7, line=8, file="n.jsonl", id="b", extra={}),
        replace(ROW, sampling=SamplingParams(seed=4, top_k=2, top_p=0.5)),
    ],
)
def test_what_does_not_count(same):
    assert row_key(same) == row_key(ROW)


def test_what_counts():
    rows = [
        ROW,
        replace(ROW, prompt="what? "),
        replace(ROW, prompt="caf\udce9"),
        replace(ROW, prompt=None, messages=MESSAGES),
        replace(ROW, images=()),
        replace(ROW, images=(ImageRef("b.png"),)),
        replace(ROW, images=(ImageRef("a.png"), ImageRef("a.png"))),
        replace(ROW, images=(ImageRef("a.png", b"1"),)),
        replace(ROW, images=(ImageRef("a.png", b"2"),)),
        replace(ROW, sampling=SamplingParams(max_tokens=5)),
        replace(ROW, sampling=SamplingParams(stop=("x",))),
        replace(ROW, sampling=SamplingParams(ignore_eos=True)),
        replace(ROW, sampling=SAMPLED),
        replace(ROW, sampling=replace(SAMPLED, seed=4)),
        replace(ROW, sampling=replace(SAMPLED, top_k=4)),
    ]
    assert len({row_key(row) for row in rows}) == len(rows)
    assert NO_KEY not in map(row_key, rows)


def test_embedded_images_count_by_their_bytes():
    named = [replace(ROW, images=(ImageRef(name, b"1"),)) for name in ("a.png", "b.png", None)]
    assert len(set(map(row_key, named))) == 1


def test_rows_with_errors_have_none():
    assert row_key(replace(ROW, error=RowError(ErrorCode.PROMPT_INVALID, "no"))) == NO_KEY


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 100))
def test_rows_are_found_by_their_keys(tmp_path_factory, values, buffer):
    keys = [bytes([value // 3] * 8 + [value] * 8) for value in values]  # halves shared by some
    path = tmp_path_factory.mktemp("keys") / "keys"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_keys_module, "_BUFFER_BYTES", buffer)
        found = write(path, keys)
    for value in range(6):
        key = bytes([value // 3] * 8 + [value] * 8)
        expected = [row for row, other in enumerate(values) if other == value]
        assert list(found.rows(key)) == ([] if key == NO_KEY else expected)


def test_no_file(tmp_path):
    assert list(RowKeys.load(tmp_path / "keys").rows(b"k" * 16)) == []


def test_a_torn_end_matches_nothing(tmp_path):
    path = tmp_path / "keys"
    write(path, [b"a" * 16, b"b" * 16])
    path.write_bytes(path.read_bytes()[:-1])
    assert list(RowKeys.load(path).rows(b"b" * 16)) == []
    assert list(RowKeys.load(path).rows(b"a" * 16)) == [0]


def test_a_second_process_keeps_what_it_does_not_reach(tmp_path):
    path = tmp_path / "keys"
    write(path, [b"a" * 16, b"b" * 16])
    keys = write(path, [b"c" * 16])
    assert [list(keys.rows(key * 16)) for key in (b"a", b"b", b"c")] == [[], [1], [0]]


@pytest.mark.parametrize("at", range(1, 4))
def test_disk_full(tmp_path, at):
    """Told once; what closes the writer on the way out has nothing to add."""
    writer = RowKeyWriter(tmp_path / "keys", FaultyFiles(at, errno.ENOSPC))
    writer.append(b"a" * 16)
    with pytest.raises(OutputError, match="Free space"):
        writer.close()
    writer.close()


def test_no_folder(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        RowKeyWriter(tmp_path / "none" / "keys")
