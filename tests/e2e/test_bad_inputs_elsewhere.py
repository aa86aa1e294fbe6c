"""Bad inputs of other kinds than JSONL and Parquet, and answers as files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpus_documents import BAD_PAGES, bad_documents
from corpus_refusals import BAD_CSV_ROWS
from corpus_rows import BAD_IMAGES
from in_process import call
from make_corpus import HERE as CORPUS
from PIL import Image

MODEL = CORPUS.parents[1] / "samples/tiny-llava"


def errors_of(source: object, folder: Path, *options: object) -> dict[str, dict[str, Any]]:
    """What ``vlmbatch validate`` finds, by id."""
    found = folder / "errors.jsonl"
    arguments = ["validate", source, "-m", MODEL, "--errors", found, "-q", *options]
    status = call(arguments)
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert status == (1 if rows else 0)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus's images, a link to a folder above, a pipe, and a name that is no text."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "all").symlink_to(CORPUS / "images")
    (folder / "odd").mkdir()
    (folder / "odd/above").symlink_to("..")
    (folder / "odd/itself.png").symlink_to("itself.png")
    (folder / "odd/gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "odd/pipe.jpg")
    (folder / os.fsdecode(b"odd/caf\xe9.png")).write_bytes(b"no image")
    return folder


def test_a_folder_of_bad_images(photos: Path, tmp_path: Path) -> None:
    """Each has the error that a manifest which names it gives its row."""
    found = errors_of(photos, tmp_path, "--prompt", "Describe the picture.", "--decode-images")
    expected = {
        f"all/{row.name}": row.code
        for row in BAD_IMAGES
        if (CORPUS / "images" / row.name).is_file() and row.name.endswith((".png", ".jpg"))
    }
    expected |= {
        "odd/itself.png": "image_unreadable",
        "odd/gone.png": "image_missing",
        "odd/pipe.jpg": "image_unreadable",
        "odd/caf\\xe9.png": "image_unreadable",
    }
    assert {name: row["error_code"] for name, row in found.items()} == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "photos/a").mkdir(parents=True)
    for name in ("a/1.png", "2.png"):
        shutil.copy(CORPUS / "images/plain.png", folder / "photos" / name)
    (folder / "photos/3.png").touch()
    with Image.open(CORPUS / "images/plain.png") as image:
        pages = [Image.new("RGB", image.size, "white"), Image.new("RGB", image.size, "black")]
        image.convert("RGB").save(folder / "photos/b.pdf", save_all=True, append_images=pages)
    return folder


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    found = errors_of(CORPUS / "manifests/bad-rows.csv", tmp_path)
    by_line = {row["line"]: row["error_message"] for row in found.values()}
    assert by_line.keys() == BAD_CSV_ROWS.keys()
    assert all(says in by_line[line] for line, says in BAD_CSV_ROWS.items()), by_line


def test_pages_that_cannot_be_read(tmp_path: Path) -> None:
    """Each is an error row, and none of another document is."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, data in bad_documents():
        (folder / name).write_bytes(data)
    found = errors_of(folder, tmp_path, "--prompt", "What?", "--decode-images")
    assert {name: row["error_code"] for name, row in found.items()} == {
        name: code for name, (code, _) in BAD_PAGES.items()
    }
    for name, (_, says) in BAD_PAGES.items():
        assert name in found[name]["error_message"] and says in found[name]["error_message"]


class TestWriteText:
    def run(self, folder: Path, *options: object) -> int:
        arguments = ["run", folder / "photos", "--prompt", "Describe the picture.", "-m", MODEL]
        return call([*arguments, "-o", folder / "out.parquet", "--max-tokens", 4, "-q", *options])

    def test_answers_lie_beside_the_images(self, folder: Path) -> None:
        assert self.run(folder, "--write-text", folder / "photos") == 1
        rows = pq.read_table(folder / "out.parquet").to_pylist()
        assert [row["id"] for row in rows] == [
            *("2.png", "3.png", "a/1.png", "b.pdf#1", "b.pdf#2", "b.pdf#3")
        ]
        texts = {path.stem: path.read_text() for path in (folder / "photos").rglob("*.txt")}
        assert texts == {"1": f"{rows[2]['text']}\n", "2": f"{rows[0]['text']}\n"}
        answers = [row["text"] for row in rows[3:]]
        assert (folder / "photos/b.md").read_text() == "\n\n".join(answers) + "\n"
        assert len({*answers}) > 1  # each page is a picture of its own

    def test_what_is_missing_of_a_complete_output_is_written(self, folder: Path) -> None:
        """By the same command, and by one that asks for another folder."""
        (folder / "photos/2.txt").unlink()
        for place in ("photos", "elsewhere"):
            assert self.run(folder, "--write-text", folder / place) == 1
            assert (folder / place / "2.txt").is_file()
        assert not (folder / "elsewhere/3.txt").exists()

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            ([{"id": "../a"}], "out of the folder"),
            ([{"id": "a.jpg"}, {"id": "a.png"}], "would both be a.txt"),
        ],
    )
    def test_refused_before_anything_is_written(
        self, rows: list[Any], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        manifest = tmp_path / "m.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = ["run", manifest, "-m", MODEL, "-o", tmp_path / "out.parquet"]
        assert call([*arguments, "--write-text", tmp_path / "texts"]) == 2
        assert says in capfd.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]

    def test_its_own_answers_are_no_sidecars(
        self, folder: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--sidecar", ".txt", "--write-text", folder / "photos/a")
        assert self.run(folder, *options) == 2
        assert "would read its own answers" in capfd.readouterr().err
