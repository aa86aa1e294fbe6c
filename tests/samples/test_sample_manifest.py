from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from held_out import ALL_KINDS, ask
from make_samples import evaluation_rows, sample_rows
from PIL import Image
from questions import QUESTION_KINDS
from qwen_samples import CHAT_MANIFEST, sample_chat_rows
from scenes import HELD_OUT_SEED, make_scene


def read_manifest(samples: Path, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (samples / name).read_text().splitlines()]


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


def test_the_shipped_conversations_are_what_their_script_writes(
    samples: Path, tmp_path: Path
) -> None:
    rows = read_manifest(samples, CHAT_MANIFEST)
    assert rows == [asdict(row) for row in sample_chat_rows(tmp_path)]
    kinds = {row["id"].partition("-")[2].replace("-", " ") for row in rows if row["answer"]}
    assert kinds == set(ALL_KINDS)
    assert {len(row["image"]) for row in rows if row["answer"]} == {1, 2}


def test_the_shipped_conversations_are_about_their_pictures(samples: Path) -> None:
    for row in read_manifest(samples, CHAT_MANIFEST):
        if row["answer"] is not None:
            seed, _, kind = row["id"].partition("-")
            asked = ask(kind.replace("-", " "), int(seed))
            for picture, path in zip(asked.images, row["image"], strict=True):
                shipped = np.asarray(Image.open(samples / path).convert("RGB"), int)
                assert np.abs(np.asarray(picture, int) - shipped).mean() < 8


def test_exactly_one_conversation_lacks_a_picture(samples: Path) -> None:
    rows = read_manifest(samples, CHAT_MANIFEST)
    asked = [sum(part["type"] == "image" for part in row["messages"][0]["content"]) for row in rows]
    lacking = [row for row, count in zip(rows, asked, strict=True) if len(row["image"]) != count]
    assert [row["id"] for row in lacking] == ["missing-picture"]
    assert [row for row in rows if row["answer"] is None] == lacking
