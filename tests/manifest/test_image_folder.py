"""A folder or a pattern of images as a manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest


def opened(source: Path | str, prompt: str | None = "What?", **options: Any) -> Manifest:
    return open_manifest(ManifestConfig(str(source), prompt, **options), SamplingParams())


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def ids(manifest: Manifest) -> list[str]:
    manifest.scan()
    return [row.id for row in manifest.rows()]


def test_a_row_an_image_in_order(tmp_path: Path) -> None:
    names = ("b.PNG", "a/2.jpg", "a/1.jpg", "a-b/x.tiff", "_DSC1.jpeg", "Z.webp", "notes.md")
    manifest = opened(fill(tmp_path, *names, ".hidden/a.jpg", ".b.jpg"))
    assert ids(manifest) == ["Z.webp", "_DSC1.jpeg", "a/1.jpg", "a/2.jpg", "a-b/x.tiff", "b.PNG"]
    rows = list(manifest.rows())
    assert {row.prompt for row in rows} == {"What?"}
    assert [row.images[0].path for row in rows][2] == str(tmp_path / "a/1.jpg")
    assert [row.line for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["1.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/b/3.jpg"]),
        ("**", ["1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png"]),
        ("a/**/*.???", ["2.jpg", "b/3.jpg", "b/4.png"]),
        ("a/*/[34].*", ["b/3.jpg", "b/4.png"]),
        ("*/**/b/*g", ["a/b/3.jpg", "a/b/4.png"]),
    ],
)
def test_a_pattern(tmp_path: Path, pattern: str, found: list[str]) -> None:
    fill(tmp_path, "1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png", "a/b/3.txt")
    assert ids(opened(f"{tmp_path}/{pattern}")) == found


def test_one_image_whose_name_is_a_pattern(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].jpg", "a1.jpg")
    assert ids(opened(tmp_path / "a[1].jpg")) == ["a[1].jpg"]


def test_links_are_followed_and_loops_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "photos", "a/1.jpg")
    fill(tmp_path / "elsewhere", "2.jpg")
    (tmp_path / "photos/up").symlink_to("..")
    (tmp_path / "photos/a/self").symlink_to(".")
    (tmp_path / "photos/self.jpg").symlink_to("self.jpg")
    assert ids(opened(tmp_path / "photos")) == ["a/1.jpg", "self.jpg", "up/elsewhere/2.jpg"]


def test_images_that_come_or_go_after_the_scan(tmp_path: Path) -> None:
    manifest = opened(fill(tmp_path, "a.jpg", "b.jpg"))
    manifest.scan()
    (tmp_path / "a.jpg").unlink()
    fill(tmp_path, "0.jpg")
    assert [row.id for row in manifest.rows()] == ["a.jpg", "b.jpg"]


def test_the_digest_is_of_paths_and_sidecars(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    first = opened(tmp_path).scan().sha256
    assert opened(tmp_path).scan().sha256 == first
    (tmp_path / "a.txt").write_text("one")
    with_text = opened(tmp_path, sidecars=(".txt",)).scan().sha256
    (tmp_path / "a.txt").write_text("two")
    assert len({first, with_text, opened(tmp_path, sidecars=(".txt",)).scan().sha256}) == 3
    fill(tmp_path, "b.jpg")
    assert opened(tmp_path).scan().sha256 != first
    assert opened(tmp_path, limit=1).scan().sha256 == first


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    """Is read by its own name, and has an id that is text."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    manifest = opened(tmp_path, keep_inputs=True)
    info = manifest.scan()
    (row,) = manifest.rows()
    assert row.id == "caf\\xe9.jpg"
    path = row.images[0].path
    assert path is not None and Path(path).read_bytes() == b"x"
    (kept,) = manifest.kept_inputs()
    pa.Table.from_pylist([kept], info.extra_schema)


def test_a_name_like_a_url(tmp_path: Path) -> None:
    fill(tmp_path, "data:a.jpg")
    manifest = opened(tmp_path)
    manifest.scan()
    (row,) = manifest.rows()
    assert row.error is None and Path(row.images[0].path or "").exists()


class TestSidecars:
    def test_become_columns(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jpg", "b.jpg")
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfA cat.\r\n")
        (tmp_path / "a.json").write_text('{"tags": ["x"], "n": 1}')
        manifest = opened(tmp_path, sidecars=(".txt", ".json"))
        info = manifest.scan()
        assert info.extra_schema.names == ["txt", "json"]
        assert [row.extra for row in manifest.rows()] == [
            {"txt": "A cat.", "json": {"tags": ["x"], "n": 1}},
            {"txt": None, "json": None},
        ]

    def test_may_be_prompts(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jpg", "b.jpg")
        (tmp_path / "a.txt").write_text("Who?")
        options = {"sidecars": (".txt",), "prompt_column": "txt"}
        manifest = opened(tmp_path, "What?", **options)
        manifest.scan()
        assert [row.prompt for row in manifest.rows()] == ["Who?", "What?"]
        manifest = opened(tmp_path, None, **options)
        manifest.scan()
        errors = [row.error and row.error.code for row in manifest.rows()]
        assert errors == [None, ErrorCode.PROMPT_INVALID]

    def test_that_cannot_be_read_are_errors_of_their_rows(self, tmp_path: Path) -> None:
        fill(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
        (tmp_path / "1.json").write_text('{"a": ')
        (tmp_path / "2.json").write_bytes(b'"caf\xe9"')
        os.mkfifo(tmp_path / "3.json")
        (tmp_path / "4.json").write_text('"' + "x" * 100 + '"')
        (tmp_path / "5.json").write_text("7")
        manifest = opened(tmp_path, sidecars=(".json",), max_line_bytes=100)
        manifest.scan()
        *bad, good = manifest.rows()
        says = ["not JSON", "not UTF-8: byte 0xe9", "not a file", "the limit of 100 bytes"]
        for row, part in zip(bad, says, strict=True):
            assert row.error is not None and row.error.code == ErrorCode.MANIFEST_LINE_INVALID
            assert f"{row.line}.json" in row.error.message and part in row.error.message
            assert row.id == f"{row.line}.jpg"
        assert good.error is None and good.extra == {"json": 7}

    @pytest.mark.parametrize("suffix", ["txt", ".", "./a", ".id", ".image", ".a.", "..", ""])
    def test_of_no_suffix_are_refused(self, suffix: str) -> None:
        with pytest.raises(ConfigError, match="--sidecar"):
            ManifestConfig("photos", sidecars=(suffix,))

    def test_beside_a_manifest_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.jsonl").touch()
        for source in (tmp_path, tmp_path / "m.jsonl"):
            with pytest.raises(ManifestError, match="folders of images"):
                opened(source, sidecars=(".txt",))


def test_pages_beside_a_manifest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").touch()
    for source in (tmp_path, tmp_path / "m.jsonl"):
        with pytest.raises(ManifestError, match="--pages 1-3 is for folders of PDFs"):
            opened(source, pages="1-3")


class TestRefused:
    def test_images_without_prompts(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="ask the same of all with --prompt"):
            opened(fill(tmp_path, "a/b.jpg"), None)

    def test_no_images(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.psd")
        with pytest.raises(ManifestError, match="the folder holds no image"):
            opened(tmp_path)
        with pytest.raises(ManifestError, match="the pattern matches no image"):
            opened(tmp_path / "*.jpg")
        with pytest.raises(ManifestError, match="no such folder"):
            opened(tmp_path / "none/*.jpg")
        fill(tmp_path, "b/a-1.tar")
        with pytest.raises(ManifestError, match=r"such as .*/b/a-1\.tar give the folder, or name"):
            opened(tmp_path / "**/a-*.tar")

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
    def test_a_folder_that_may_not_be_read(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.jpg", "b/c.jpg")
        manifest = opened(tmp_path)
        (tmp_path / "b").chmod(0)
        with pytest.raises(ManifestError, match="/b: cannot be read: Permission denied"):
            manifest.scan()


def test_a_folder_with_a_manifest_is_a_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "m.jsonl").write_text('{"image": "a.jpg", "id": "one"}\n{"prompt": "Who?"}\n')
    with caplog.at_level("INFO", "vlmbatch"):
        manifest = opened(tmp_path)
    assert "m.jsonl" in caplog.text and "**/*" in caplog.text
    manifest.scan()
    assert [row.prompt for row in manifest.rows()] == ["What?", "Who?"]


def test_what_is_no_image_by_its_name_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = opened(
        fill(tmp_path, "a.jpg", "b.psd", "c.PSD", "d.HEIC", "e.HIF", "a.txt"), sidecars=(".txt",)
    )
    with caplog.at_level("INFO", "vlmbatch"):
        manifest.scan()
    assert "2 files are no images by their names and are left out (2 .psd)" in caplog.text
