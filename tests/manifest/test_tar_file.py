"""WebDataset tars as manifests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlmbatch.config import ManifestConfig, Part, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.types import Row


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, **more: bytes) -> list[tuple[str, bytes]]:
    members = {"jpg": f"picture of {key}".encode(), **more}
    return [(f"{key}.{suffix}", data) for suffix, data in members.items()]


def opened(source: object, **options: Any) -> Manifest:
    return open_manifest(ManifestConfig(str(source), "What?", **options), SamplingParams())


def rows_of(manifest: Manifest) -> list[Row]:
    manifest.scan()
    return list(manifest.rows())


def test_members_of_one_key_are_a_row(tmp_path: Path) -> None:
    members = [
        ("./a", b""),
        *sample("./a/1", txt=b"A cat.\n", json=b'{"n": 1}', npy=b"\x93NUMPY"),
        ("a/2.left.png", b"L"),
        ("a/2.right.PNG", b"R"),
        ("a/3.prompt", b"Who?"),
    ]
    manifest = opened(tar(tmp_path / "a.tar", members), keep_inputs=True)
    info = manifest.scan()
    one, two, three = manifest.rows()
    assert (one.id, one.prompt, one.extra) == ("a/1", "What?", {"txt": "A cat.", "json": {"n": 1}})
    assert [image.data for image in one.images] == [b"picture of ./a/1"]
    assert [image.data for image in two.images] == [b"L", b"R"]
    assert (three.id, three.prompt, three.images) == ("a/3", "Who?", ())
    kept = list(manifest.kept_inputs())
    assert pa.Table.from_pylist(kept, info.extra_schema).num_rows == 3


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("imgs/0a1b", b"x"), ("imgs/2c", b"x"), ("a.bin", b"x"), ("._b.jpg", b"x")]
    with caplog.at_level("INFO", "vlmbatch"):
        assert rows_of(opened(tar(tmp_path / "a.tar", members))) == []
    assert "are left out (2 without an end such as .jpg, 1 .bin)" in caplog.text


def test_a_brace_pattern_and_a_folder(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"train-{number:03}.tar", sample(f"{number}"))
    for source in (f"{tmp_path}/train-{{000..002}}.tar", f"{tmp_path}/train-00{{0,1,2}}.tar"):
        assert [row.id for row in rows_of(opened(source))] == ["0", "1", "2"]
    assert [row.id for row in rows_of(opened(tmp_path))] == ["0", "1", "2"]
    with pytest.raises(ManifestError, match=r"train-003\.tar: no such manifest"):
        opened(f"{tmp_path}/train-{{000..005}}.tar")
    with pytest.raises(ManifestError, match="stands for 1000001 files"):
        opened(f"{tmp_path}/train-{{0..1000000}}.tar")


def test_parts_begin_where_their_samples_are(tmp_path: Path) -> None:
    members = [each for key in range(10) for each in sample(f"{key}")]
    path = tar(tmp_path / "a.tar", members)
    found = []
    for number in range(3):
        manifest = opened(path)
        manifest.scan()
        manifest.select(Part(number, 3))
        found += [(row.id, row.images[0].data) for row in manifest.rows()]
    assert found == [(f"{key}", f"picture of {key}".encode()) for key in range(10)]


def test_a_limit(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [*sample("0"), *sample("1"), *sample("2", status=b"x")])
    first = opened(path, limit=2)
    assert [row.id for row in rows_of(first)] == ["0", "1"]
    assert first.scan().sha256 != opened(path).scan().sha256


def test_bad_members_are_errors_of_their_rows(tmp_path: Path) -> None:
    members = [
        *sample("0", json=b"{"),
        *sample("1", txt=b"\xff"),
        *sample("2", txt=b"x" * 101),
        *sample("3"),
        ("3.JPG", b"another"),
        ("4.txt", b"a"),
        ("4.txt", b"b"),
    ]
    rows = rows_of(opened(tar(tmp_path / "a.tar", members), max_line_bytes=100))
    says = {0: "not JSON", 1: "0xff", 2: "101 bytes, over the limit of 100", 4: "two members"}
    assert len(rows[3].images) == 2
    for number, part in says.items():
        error = rows[number].error
        assert error is not None and error.code == ErrorCode.MANIFEST_LINE_INVALID
        assert part in error.message and f"{number}." in error.message


def test_links_are_errors_of_their_rows(tmp_path: Path) -> None:
    """As of files that several names had where the tar was made."""
    path = tar(tmp_path / "a.tar", sample("1"))
    with tarfile.open(path, "a") as file:
        for name, kind in (("2.jpg", tarfile.LNKTYPE), ("3.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            file.addfile(member)
    first, *others = rows_of(opened(path))
    assert first.error is None and [row.id for row in others] == ["2", "3"]
    for row, name in zip(others, ("2.jpg", "3.jpg"), strict=True):
        assert row.error is not None and row.error.code is ErrorCode.MANIFEST_LINE_INVALID
        assert f"{name}: a link to 1.jpg, which is not followed" in row.error.message


def test_members_out_of_order_are_refused(tmp_path: Path) -> None:
    members = [*sample("0"), *sample("1"), ("0.txt", b"late")]
    with pytest.raises(ManifestError, match=r'duplicate id "0"'):
        opened(tar(tmp_path / "a.tar", members)).scan()


@pytest.mark.parametrize("size", [300, 512, 700, 1100, 2000, 2048])
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tar(tmp_path / "a.tar", [("0.jpg", b"x" * 600), ("1.jpg", b"y" * 600)])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ManifestError, match=r"a\.tar: is .*cut short"):
        opened(path).scan()


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(100), b"\x1f\x8b" + b"x" * 1000])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"a\.tar: is "):
        opened(path).scan()


def test_garbage_between_members_is_no_end(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"y"), ("2.jpg", b"z")])
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\xaa" * 512
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="at byte 1024"):
        opened(path).scan()


def test_a_tar_without_samples_has_no_rows(tmp_path: Path) -> None:
    assert rows_of(opened(tar(tmp_path / "a.tar", []))) == []


def test_a_tar_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [*sample("0"), *sample("1")])
    manifest = opened(path)
    manifest.scan()
    rows = manifest.rows()
    next(rows)
    tar(path, [*sample("0"), *sample("2")])
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(rows)
