"""URLs of outputs, and the folders on this machine in which they are made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.commands.remote_output import remote_destination
from vlmbatch.config import FileDestination, FolderDestination, OutputOptions
from vlmbatch.errors import UsageError

WORK_DIR = Path("/work-dir")


@pytest.mark.parametrize(
    ("url", "shard_rows", "local"),
    [
        ("s3://bucket/out.parquet", None, FileDestination(Path("out.parquet"))),
        ("s3://bucket/a b/o\u00fct.parquet", None, FileDestination(Path("o-t.parquet"))),
        ("s3://bucket/out.jsonl", None, FileDestination(Path("out.jsonl"))),
        ("s3://bucket/out.parquet", 5, FolderDestination(Path("out"), 5)),
        ("s3://bucket/out.v2/", None, FolderDestination(Path("out"), 100_000)),
        ("s3://bucket/", None, FolderDestination(Path("bucket"), 100_000)),
        ("hf://datasets/ann/rows.v2", 5, FolderDestination(Path("rows"), 5)),
    ],
)
def test_kinds(
    url: str, shard_rows: int | None, local: FileDestination | FolderDestination
) -> None:
    options = OutputOptions(output=url, work_dir=WORK_DIR, shard_rows=shard_rows)
    found = remote_destination(options, url)
    assert found.url == str(found) == url and found.folder.parent == WORK_DIR
    assert found.local.path == found.folder / local.path
    assert type(found.local) is type(local)
    assert getattr(found.local, "shard_rows", None) == getattr(local, "shard_rows", None)


@given(st.text(max_size=80), st.sampled_from(["s3", "gs", "hf", "sftp"]))
def test_any_url_has_a_folder_of_its_own_or_is_refused(text: str, scheme: str) -> None:
    url = f"{scheme}://{text}"
    options = OutputOptions(output=url, work_dir=WORK_DIR)
    try:
        found = remote_destination(options, url)
    except UsageError as error:
        assert url in str(error) or repr(url) in str(error)
        return
    assert found.folder.parent == WORK_DIR and found.local.path.parent == found.folder
    assert len(found.local.path.name.encode()) < 60 and found.local.path.name.isprintable()
    assert remote_destination(options, url) == found


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = "s3://bucket/out.parquet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = remote_destination(OutputOptions(output=url), url).folder
    assert folder.parent == tmp_path / "vlmbatch" / "outputs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = remote_destination(OutputOptions(output=url), url).folder
    assert folder.parent == tmp_path / ".cache" / "vlmbatch" / "outputs"
