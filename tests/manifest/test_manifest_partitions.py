"""Manifests in Hive's layout: folders called key=value, whose keys are columns."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.sources import is_part_of_folder

NULL = "__HIVE_DEFAULT_PARTITION__"


def opened(folder: Path, **options: Any) -> Manifest:
    return open_manifest(ManifestConfig(str(folder), **options), SamplingParams())


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_keys_are_columns_and_files_come_by_name(tmp_path: Path, kind: str) -> None:
    for number, place in enumerate(
        ("year=2026/month=11/b", "year=2026/month=11/a", f"year={NULL}/month=1%2F2/a", "whole")
    ):
        write(tmp_path / f"{place}.{kind}", [{"prompt": f"{number}", "n": number}])
    write(tmp_path / f"year=2026/_SUCCESS.{kind}", [{"prompt": "hidden"}])
    write(tmp_path / f".tmp=1/a.{kind}", [{"prompt": "hidden"}])
    write(tmp_path / f"_delta=1/a.{kind}", [{"prompt": "hidden"}])
    write(tmp_path / f"plain/a.{kind}", [{"prompt": "in a folder of another kind"}])
    (tmp_path / "year=2026/_SUCCESS").touch()
    (tmp_path / f"answers.{kind}").mkdir()
    manifest = opened(tmp_path)
    info = manifest.scan()
    assert [Path(name).relative_to(tmp_path).as_posix() for name in info.files] == [
        f"whole.{kind}",
        f"year=2026/month=11/a.{kind}",
        f"year=2026/month=11/b.{kind}",
        f"year={NULL}/month=1%2F2/a.{kind}",
    ]
    assert info.extra_schema.field("year").type == pa.string()
    assert info.extra_schema.field("month").type == pa.string()
    assert [
        (row.prompt, row.extra.get("year"), row.extra.get("month")) for row in manifest.rows()
    ] == [
        ("3", None, None),
        ("1", "2026", "11"),
        ("0", "2026", "11"),
        ("2", None, "1/2"),
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_column_of_the_file_itself_wins(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"year=2026/a.{kind}", [{"prompt": "a", "year": 2026}])
    manifest = opened(tmp_path)
    assert manifest.scan().extra_schema.field("year").type == pa.int64()
    assert [row.extra["year"] for row in manifest.rows()] == [2026]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_key_may_be_an_input(tmp_path: Path, kind: str) -> None:
    for key in ("a", "b"):
        write(tmp_path / f"id={key}/prompt=Hello%20{key}/m.{kind}", [{"n": 1}])
    manifest = opened(tmp_path)
    assert manifest.scan().extra_schema.names == ["n"]
    assert [(row.id, row.prompt) for row in manifest.rows()] == [("a", "Hello a"), ("b", "Hello b")]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_ids_of_a_key_must_differ_too(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"id=a/m.{kind}", [{"prompt": "x"}, {"prompt": "y"}])
    with pytest.raises(ManifestError, match='duplicate id "a"'):
        opened(tmp_path).scan()


def test_the_digest_tells_values(tmp_path: Path) -> None:
    write(tmp_path / "dt=1/m.jsonl", [{"prompt": "x"}])
    before = opened(tmp_path).scan().sha256
    (tmp_path / "dt=1").rename(tmp_path / "dt=2")
    assert opened(tmp_path).scan().sha256 != before


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    write(tmp_path / "a=1/m.jsonl", [{"prompt": "x"}])
    (tmp_path / "a=1/b=2").symlink_to(tmp_path)
    with pytest.raises(ManifestError, match='have two values of "a"'):
        opened(tmp_path)


def test_only_plain_folders_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "plain/a.jsonl", [{"prompt": "x"}])
    with pytest.raises(
        ManifestError,
        match="only those in the folder itself and in folders called key=value are read",
    ):
        opened(tmp_path)


def test_requests_of_batch_files_have_no_columns(tmp_path: Path) -> None:
    body = {"model": "m", "prompt": "Hello"}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    write(tmp_path / "dt=1/m.jsonl", [request])
    for name in ("auto", "openai"):
        manifest = opened(tmp_path, format=name)
        assert manifest.format == "openai"
        assert [(row.prompt, row.extra) for row in manifest.rows()] == [
            ("Hello", {"url": "/v1/completions"})
        ]


@settings(deadline=None, max_examples=40)
@given(
    value=st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda v: v != NULL)
)
def test_every_value_comes_back(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    folder = tmp_path_factory.mktemp("values")
    write(folder / f"k={urllib.parse.quote(value, safe='')}/m.jsonl", [{"prompt": "x"}])
    assert [row.extra for row in opened(folder).rows()] == [{"k": value}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("m.jsonl", True),
        ("a=1/b=2/m.parquet", True),
        ("a=1/plain/m.parquet", False),
        ("plain/m.parquet", False),
        ("_m.parquet", False),
        ("_a=1/m.parquet", False),
        ("a=1/.m.jsonl.gz", False),
        ("m.json", False),
        ("../m.jsonl", False),
    ],
)
def test_what_is_read_can_be_told_beforehand(tmp_path: Path, path: str, expected: bool) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    place = (folder / path).resolve()
    assert is_part_of_folder(place, folder) is expected
    write(folder / "other=1/n.parquet" if path.endswith("parquet") else folder / "n.jsonl", [{}])
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".parquet":
        write(place, [{"prompt": "x"}])
    else:
        place.write_text("{}\n")
    if place.suffix != ".gz":
        assert (str(place) in opened(folder).scan().files) is expected
