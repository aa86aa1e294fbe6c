"""Resolutions of a whole run and of its rows, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from in_process import call
from PIL import Image
from qwen_vl_checkpoints import make_checkpoint
from sample_model import MODEL as LLAVA

from vlmbatch import LLM, SamplingParams

RUN = ("--max-pixels", 30_000, "--min-pixels", 2048, "--longest-side", 300)
# Tokens of 32 x 32 pixels; smart_resize of 300 x 150, which --longest-side makes of the image.
ROWS: list[tuple[dict[str, Any], int]] = [
    ({}, 3 * 7),
    ({"max_pixels": 8000}, 1 * 3),
    ({"max_pixels": 30_000, "min_pixels": None}, 3 * 7),
    ({"max_pixels": 12_000, "min_pixels": 10_000}, 2 * 4),
]
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"max_pixels": 30_001}, "max_pixels is 30001, above the run's 30000"),
    ({"min_pixels": 9000, "max_pixels": 8000}, "min_pixels is 9000, above max_pixels"),
    ({"max_pixels": 1000}, "max_pixels must be at least 1024, got 1000"),
    ({"max_pixels": "few"}, "max_pixels must be an integer, got 'few' (str)"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    make_checkpoint("qwen3_vl", folder)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    pixels = np.random.default_rng(3).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((600, 300)).save(folder / "a.png")
    lines = [
        json.dumps({"prompt": "<image> what?", "image": "a.png", "note": "kept"} | values)
        for values, _ in [*ROWS, *ERRORS]
    ]
    (folder / "m.jsonl").write_text("\n".join(lines))
    return folder / "m.jsonl"


def answered(manifest: Path, output: Path, *options: object) -> list[dict[str, Any]]:
    arguments = ["run", manifest, "-o", output, "--exit-zero", "--max-tokens", 12, "-q", *options]
    assert call(arguments) == 0
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_have_the_tokens_that_they_ask_for(
    model: Path, manifest: Path, tmp_path: Path, workers: int
) -> None:
    rows = answered(
        manifest, tmp_path / "out.parquet", "-m", model, *RUN, "--image-workers", workers
    )
    assert [row["image_tokens"] for row in rows] == [tokens for _, tokens in ROWS] + [None] * 4
    for row, (_, said) in zip(rows[len(ROWS) :], ERRORS, strict=True):
        assert row["error_code"] == "resolution_invalid" and said in row["error_message"], row
    assert rows[0].keys() & {"max_pixels", "min_pixels", "note"} == {"note"}


def test_validate_finds_the_same_errors(model: Path, manifest: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    assert call(["validate", manifest, "-m", model, *RUN, "--errors", errors, "-q"]) == 1
    found = [json.loads(line) for line in errors.read_text().splitlines()]
    assert [row["row_index"] for row in found] == list(range(len(ROWS), len(ROWS) + len(ERRORS)))
    for row, (_, said) in zip(found, ERRORS, strict=True):
        assert row["error_code"] == "resolution_invalid" and said in row["error_message"]


def test_features_are_computed_at_each_rows_resolution(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    command = ["features", manifest, "-m", model, "-o", folder, *RUN, "--exit-zero", "-q"]
    assert call([*command, "--image-workers", 0]) == 0
    assert len(list(folder.rglob("*.safetensors"))) == 3, "two rows have one resolution"
    stored = answered(
        *(folder / "manifest.jsonl", tmp_path / "stored.parquet", "-m", model),
        *("--image-input-type", "image_features"),
    )
    plain = answered(manifest, tmp_path / "plain.parquet", "-m", model, *RUN)
    for mine, expected in zip(stored[: len(ROWS)], plain, strict=False):
        assert mine["text"] == expected["text"]
        assert mine["image_tokens"] == expected["image_tokens"]


def test_decoded_images_of_python_callers(model: Path) -> None:
    shown = {"image": Image.new("RGB", (600, 300))}
    requests = [
        {"prompt": "<image> what?", "multi_modal_data": shown, "mm_processor_kwargs": values}
        for values, _ in ROWS
    ]
    limits = {"max_pixels": 30_000, "min_pixels": 2048, "longest_side": 300}
    with LLM(model, image_workers=0, **limits) as llm:  # type: ignore[arg-type]
        outputs = llm.generate(requests, SamplingParams(max_tokens=1))
    assert [output.num_image_tokens for output in outputs] == [tokens for _, tokens in ROWS]


def test_from_configuration_and_environment(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job.toml").write_text(f'model = "{model}"\nlongest_side = 300\nmin_pixels = 2048')
    monkeypatch.setenv("VLMBATCH_MAX_PIXELS", "30000")
    rows = answered(
        manifest, tmp_path / "out.parquet", "--config", tmp_path / "job.toml", "--limit", 2
    )
    assert [row["image_tokens"] for row in rows] == [tokens for _, tokens in ROWS[:2]]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--max-pixels", "--max-pixels is given as 5000, but the model's images always take 100 t"),
        ("--min-pixels", "--min-pixels is given as 5000, but"),
        ("--longest-side", "--longest-side is given as 5000, but"),
    ],
)
def test_a_model_of_one_size_refuses_them(
    option: str, said: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    assert call(["run", manifest, "-m", LLAVA, "-o", output, option, 5000]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_a_row_for_a_model_of_one_size(manifest: Path, tmp_path: Path) -> None:
    rows = answered(manifest, tmp_path / "out.parquet", "-m", LLAVA, "--limit", 3)
    codes = [row["error_code"] for row in rows]
    assert codes == [None, "resolution_invalid", "resolution_invalid"]
    assert "the model's images always take 100 tokens" in rows[1]["error_message"]


def test_what_models_of_one_size_take_names_these(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("--image-feature-size", 576), ("--image-input-shape", "1,3,336,336")):
        command = ["run", manifest, "-m", model, "-o", tmp_path / "out.parquet", option, value]
        assert call(command) == 2
        said = capsys.readouterr().err
        assert f"{option} is given as " in said
        assert "--max-pixels, --min-pixels and --longest-side" in said


def test_limits_that_contradict_each_other(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("-o", tmp_path / "out.parquet")
    for options, said in (
        (("--max-pixels", 4096, "--min-pixels", 5000), "--min-pixels is 5000, above --max-pixels"),
        (("--max-pixels", 1023), "--max-pixels must be at least 1024, got 1023"),
        (("--max-pixels", 1024), "--min-pixels is 2048, above --max-pixels, which is 1024"),
        (("--longest-side", 0), "longest-side"),
    ):
        assert call(["run", manifest, "-m", model, *output, *options]) == 2
        assert said in capsys.readouterr().err


def test_what_errors_advise_helps(model: Path, manifest: Path, tmp_path: Path) -> None:
    """An image too large for the context, then a row that asks for more than the run."""

    def errors(*options: object) -> list[str | None]:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        command = (manifest, output, "-m", model, "--limit", len(ROWS) + 1, "--longest-side", 300)
        return [row["error_message"] for row in answered(*command, "--min-pixels", 1024, *options)]

    short = ("--max-model-len", 32)
    first, *others = errors(*short, "--max-pixels", 45_000)
    assert first is not None and "takes 36 tokens; with at least one" in first
    assert "exceeds the context of 32: --max-pixels makes" in first and others[:3] == [None] * 3
    *answers, last = errors(*short, "--max-pixels", 30_000)
    assert answers == [None] * len(ROWS)
    assert last is not None and "above the run's 30000: rows may ask for fewer" in last
    assert errors(*short, "--max-pixels", 30_001) == [None] * (len(ROWS) + 1)
