"""A manifest that changes after its first pass: what has changed is never taken for what was."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.manifest import second_pass
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.parquet import ParquetFile
from vlmbatch.manifest.second_pass import StreamDigest, same_stream

NUM_ROWS = 4000
GROUP_ROWS = 500


def jsonl(prompts: list[str]) -> bytes:
    return b"".join(json.dumps({"prompt": prompt}).encode() + b"\n" for prompt in prompts)


def parquet(prompts: list[str]) -> bytes:
    file = io.BytesIO()
    table = pa.table({"prompt": prompts})
    pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="none")
    return file.getvalue()


KINDS: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": jsonl,
    "jsonl.gz": lambda prompts: gzip.compress(jsonl(prompts), 1),
    "jsonl.zst": lambda prompts: zstandard.compress(jsonl(prompts)),
    "parquet": parquet,
}
PROMPTS = [f"{index:04} {'x' * 400}" for index in range(NUM_ROWS)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(path: Path, **options: Any) -> Manifest:
    return open_manifest(ManifestConfig(str(path), **options), SamplingParams())


def given_out(manifest: Manifest) -> list[str | None]:
    """The prompts that come before the pass is refused."""
    found = []
    with pytest.raises(ManifestError, match="changed while it was being read"):
        for row in manifest.rows():
            found.append(row.prompt)
    return found


def replaced(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.replace(path)


def edited(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


@pytest.mark.parametrize("change", [replaced, edited])
@pytest.mark.parametrize("row", [0, NUM_ROWS // 2, NUM_ROWS - 1])
def test_another_row(
    tmp_path: Path, kind: str, row: int, change: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / f"m.{kind}"
    path.write_bytes(KINDS[kind](PROMPTS))
    manifest = opened(path)
    manifest.scan()
    prompts = [*PROMPTS]
    prompts[row] = f"other {'x' * 400}"
    change(path, KINDS[kind](prompts))
    found = given_out(manifest)
    assert found == PROMPTS[: len(found)] and len(found) <= row


@pytest.mark.parametrize("num_rows", [0, 1, NUM_ROWS - 1])
def test_rows_are_gone(tmp_path: Path, kind: str, num_rows: int) -> None:
    path = tmp_path / f"m.{kind}"
    path.write_bytes(KINDS[kind](PROMPTS))
    manifest = opened(path)
    manifest.scan()
    path.write_bytes(KINDS[kind](PROMPTS[:num_rows]))
    found = given_out(manifest)
    assert found == PROMPTS[: len(found)]


def test_edited_in_the_middle_of_the_pass(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"m.{kind}"
    path.write_bytes(KINDS[kind](PROMPTS))
    manifest = opened(path)
    manifest.scan()
    rows = manifest.rows()
    found = [next(rows).prompt]
    edited(path, KINDS[kind](["other" + prompt[5:] for prompt in PROMPTS]))
    if kind not in ("jsonl.gz", "jsonl.zst"):  # these are read ahead, compressed
        with pytest.raises(ManifestError):
            found += [row.prompt for row in rows]
    assert found == PROMPTS[: len(found)]


@pytest.mark.parametrize("limit", [None, 30])
def test_rows_that_are_new_are_left_to_the_next_run(tmp_path: Path, limit: int | None) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(jsonl(PROMPTS)[:-1])  # the last line has no end yet
    manifest = opened(path, limit=limit)
    manifest.scan()
    with path.open("ab") as file:
        file.write(b"\n" + jsonl(["new"]))
    assert [row.prompt for row in manifest.rows()] == PROMPTS[:limit]


def test_a_folder_of_which_any_file_changes(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([f"{name}{i}" for i in range(3)]))
    manifest = opened(tmp_path)
    manifest.scan()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(jsonl(["new"]))
    (tmp_path / "aa.jsonl").write_bytes(jsonl(["new"]))
    assert [row.prompt for row in manifest.rows()] == [
        f"{name}{i}" for name in "abc" for i in range(3)
    ]
    (tmp_path / "b.jsonl").write_bytes(jsonl(["b0", "b1", "b3"]))
    assert given_out(manifest) == ["a0", "a1", "a2"]


def test_the_same_content_is_the_same_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"m.{kind}"
    path.write_bytes(KINDS[kind](PROMPTS))
    manifest = opened(path)
    manifest.scan()
    os.utime(path, ns=(1, 1))
    assert sum(1 for _ in manifest.rows()) == NUM_ROWS
    replaced(path, path.read_bytes())
    assert [row.prompt for row in manifest.rows()] == PROMPTS


def test_a_time_that_was_put_back_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(parquet(PROMPTS))
    manifest = opened(path)
    manifest.scan()
    before = path.stat().st_mtime_ns
    edited(path, parquet(["9" + prompt[1:] for prompt in PROMPTS]))
    os.utime(path, ns=(before, before))
    assert given_out(manifest) == []


def test_parquet_that_changes_in_the_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(parquet(PROMPTS))
    manifest = opened(path)
    (file,) = manifest._files
    assert isinstance(file, ParquetFile)
    digest = file._stored.digest

    def digest_and_edit(end: int | None) -> str:
        found = digest(end)
        edited(path, parquet(PROMPTS[1:]))
        return found

    monkeypatch.setattr(file._stored, "digest", digest_and_edit)
    with pytest.raises(ManifestError, match="changed while"):
        manifest.scan()


@settings(deadline=None)
@given(data=st.data(), content=st.binary(max_size=60), more=st.binary(max_size=20))
def test_a_stream_gives_what_was_seen_or_nothing(
    data: st.DataObject, content: bytes, more: bytes
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_pass, "_BLOCK_BYTES", 8)
        seen = StreamDigest()
        start = 0
        while start < len(content):  # in pieces of any length
            size = data.draw(st.integers(1, 25))
            seen.update(content[start : start + size])
            start += size
        assert same_stream(io.BytesIO(content + more), seen, "m").read() == content
        if not content:
            return
        place = data.draw(st.integers(0, len(content) - 1))
        shorter = content[:place]
        other = shorter + bytes([content[place] ^ 1]) + content[place + 1 :]
        for changed in (shorter, other + more):
            stream, found = same_stream(io.BytesIO(changed), seen, "m"), b""
            with pytest.raises(ManifestError, match="m: changed while it was being read"):
                while piece := stream.read(1):
                    found += piece
            assert content.startswith(found) and len(found) <= place
