from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_samples import evaluation_rows, sample_rows
from PIL import Image
from questions import QUESTION_KINDS
from scenes import HELD_OUT_SEED, make_scene


def read_manifest(samples: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (samples / "manifest.jsonl").read_text().splitlines()]


def test_the_shipped_manifest_is_what_its_script_writes(samples: Path, tmp_path: Path) -> None:
    rows = read_manifest(samples)
    assert rows == [asdict(row) for row in sample_rows(tmp_path)]
    assert 24 <= len(rows) <= 32
    assert {row["image"].rpartition(".")[2] for row in rows} == {"png", "jpg"}
    kinds = {row["id"].rpartition("-")[2] for row in rows if row["answer"] is not None}
    assert kinds == set(QUESTION_KINDS)


def test_the_shipped_images_show_their_scenes(samples: Path) -> None:
    for row in read_manifest(samples):
        if row["answer"] is not None:
            drawn = np.asarray(make_scene(int(row["id"].split("-")[0])).image, int)
            shipped = np.asarray(Image.open(samples / row["image"]).convert("RGB"), int)
            assert np.abs(drawn - shipped).mean() < 5


def test_exactly_two_rows_are_wrong(samples: Path) -> None:
    rows = read_manifest(samples)
    wrong = [row for row in rows if row["answer"] is None]
    assert [row["id"] for row in wrong] == ["truncated-image", "two-image-tokens"]
    assert [row["id"] for row in rows if row["prompt"].count("<image>") != 1] == [wrong[1]["id"]]
    with (
        Image.open(samples / wrong[0]["image"]) as image,
        pytest.raises(OSError, match="truncated"),
    ):
        image.load()


def test_the_parquet_manifest_holds_the_same_rows(samples: Path) -> None:
    embedded = pq.read_table(samples / "manifest.parquet").to_pylist()
    rows = read_manifest(samples)
    wanted = []
    for row in rows:
        image = {"bytes": (samples / row["image"]).read_bytes(), "path": row["image"]}
        wanted.append({**row, "image": image})
    assert embedded == wanted


def test_evaluation_rows_ask_everything_about_held_out_scenes(tmp_path: Path) -> None:
    rows = evaluation_rows(60, HELD_OUT_SEED + 5, tmp_path)
    assert len(rows) == len({row.id for row in rows}) == 60
    assert {row.id.split("-")[1] for row in rows} == set(QUESTION_KINDS)
    assert {path.suffix for path in (tmp_path / "images").iterdir()} == {".png", ".jpg"}
    assert {row.image for row in rows} == {
        f"images/{path.name}" for path in (tmp_path / "images").iterdir()
    }
    assert evaluation_rows(60, HELD_OUT_SEED + 5, tmp_path) == rows
