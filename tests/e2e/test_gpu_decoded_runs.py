"""Whole runs whose JPEGs go to the process for a device; Pillow decodes there, for a GPU."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpus_rows import corpus_rows, mistakes
from device_decoders import InvertingDecoder, PillowDecoder
from encoding import encoded
from in_process import call
from make_corpus import HERE as CORPUS
from make_corpus import rows_manifest
from PIL import Image

import vlmbatch.session.load
import vlmbatch.session.open

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "tiny-llava"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the batches that are decoded in place of a GPU."""
    (tmp_path / "log").touch()
    stand_in = partial(PillowDecoder, tmp_path / "log")
    for module in (vlmbatch.session.open, vlmbatch.session.load):
        monkeypatch.setattr(module, "check_gpu_decoder", lambda config, processor: None)
    monkeypatch.setattr(vlmbatch.session.open, "gpu_decoder", lambda: stand_in)
    return tmp_path / "log"


def num_decoded(log: Path) -> int:
    return sum(int(line) for line in log.read_text().split())


def run(manifest: Path, output: Path, *options: object) -> tuple[int, list[dict[str, object]]]:
    command = ["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 1]
    status = call([*command, *options])
    return status, pq.read_table(output).to_pylist()


def test_answers_are_those_of_exact(log: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["image"].startswith("images/10010000")]
    names = {row["image"] for row in rows}
    (tmp_path / "images").symlink_to(SAMPLES / "images")
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exact = run(tmp_path / "m.jsonl", tmp_path / "exact.parquet")
    assert num_decoded(log) == 0
    assert run(tmp_path / "m.jsonl", tmp_path / "gpu.parquet", "--image-decoder", "gpu") == exact
    right = [row["text"] == row["answer"] for row in exact[1] if row["status"] == "ok"]
    assert len(right) > 20 and all(right)
    assert num_decoded(log) == sum(name.endswith(".jpg") for name in names) > 0


def test_a_run_with_poison_and_with_what_is_no_plain_jpeg(log: Path, tmp_path: Path) -> None:
    with Image.open(SAMPLES / "images/1001000001.jpg") as opened:
        picture = opened.convert("RGB")
    good = encoded(picture, "JPEG")
    files = {
        "good.jpg": good,
        "crash.jpg": encoded(picture, "JPEG", comment=b"crash, please"),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "cut.jpg": good[: len(good) // 2],
        "no-end.jpg": good[:-2],
        "picture.png": encoded(picture),
        "again.jpg": encoded(picture, "JPEG", quality=90),
        "large.jpg": encoded(picture.resize((1000, 700)), "JPEG"),
    }
    rows = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        rows.append({"prompt": "USER: <image>\nWhat number is written? ASSISTANT:", "image": name})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ("--max-image-pixels", 300_000, "--max-tokens", 8)
    status, exact = run(tmp_path / "m.jsonl", tmp_path / "exact.parquet", *limits)
    assert status == 1
    options = (*limits, "--image-decoder", "gpu")
    status, ours = run(tmp_path / "m.jsonl", tmp_path / "gpu.parquet", *options)
    assert status == 1
    errors = [row["error_message"] for row in ours]
    assert "the decoder crashed (signal 11)" in str(errors.pop(1))
    assert errors == [row["error_message"] for row in exact if row["row_index"] != 1]
    texts = [(row["row_index"], row["text"]) for row in ours if row["status"] == "ok"]
    assert texts == [
        (row["row_index"], row["text"]) for row in exact if row["text"] and row["row_index"] != 1
    ]
    assert len(texts) == 4
    assert (
        call(
            [
                "validate",
                tmp_path / "m.jsonl",
                "-m",
                MODEL,
                "--decode-images",
                "-q",
                "--image-decoder",
                "gpu",
                "--image-workers",
                1,
                *limits[:2],
            ]
        )
        == 1
    )


def test_the_jpegs_of_the_corpus_have_their_results(log: Path, tmp_path: Path) -> None:
    rows = [row for row in corpus_rows() if b".jpg" in row.line]
    (tmp_path / "images").symlink_to(CORPUS / "images")
    (tmp_path / "m.jsonl").write_bytes(rows_manifest(rows))
    options = ("--image-decoder", "gpu", "--max-tokens", 32)
    status, records = run(tmp_path / "m.jsonl", tmp_path / "out.parquet", *options)
    assert status == 1
    assert mistakes(rows, records) == []
    assert num_decoded(log) == 10  # eight orientations, corrupt EXIF, a picture behind another


def test_features_of_another_decoder_are_others(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = partial(InvertingDecoder, log)
    monkeypatch.setattr(vlmbatch.session.open, "gpu_decoder", lambda: stand_in)
    Image.linear_gradient("L").save(tmp_path / "a.jpg")
    row = {"prompt": "USER: <image>\nWhat? ASSISTANT:", "image": "a.jpg"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    command = ["features", tmp_path / "m.jsonl", "-m", MODEL, "-o", tmp_path / "f", "-q"]
    for decoder in ("exact", "gpu", "gpu"):
        assert call([*command, "--image-workers", 1, "--image-decoder", decoder]) == 0
    sizes = Counter(path.read_bytes() for path in tmp_path.rglob("*.safetensors"))
    assert list(sizes.values()) == [1, 1]
    assert num_decoded(log) == 1
