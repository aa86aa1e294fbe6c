"""Bad inputs where no manifest of rows is: folders of images, and what lies in them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from corpus_rows import BAD_IMAGES
from in_process import call
from make_corpus import HERE as CORPUS

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
