"""The corpus of bad inputs for a model whose images take tokens by their size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpus_rows import mistakes
from corpus_varying import varying_rows
from in_process import call
from make_corpus import HERE as CORPUS
from qwen_vl_checkpoints import make_checkpoint

MANIFEST = CORPUS / "varying-rows.jsonl"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    make_checkpoint("qwen3_vl", folder)
    return folder


@pytest.fixture(scope="module")
def records(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("out") / "out.parquet"
    command = ["run", MANIFEST, "-m", model, "-o", output, "--max-tokens", 3, "-q"]
    assert call([*command, "--image-workers", 1]) == 1
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


def test_every_row_has_its_result(records: list[dict[str, Any]]) -> None:
    assert mistakes(varying_rows(), records) == []


@pytest.mark.parametrize("decode", [False, True])
def test_validate_finds_the_same_errors(
    records: list[dict[str, Any]], model: Path, tmp_path: Path, decode: bool
) -> None:
    errors = tmp_path / "errors.jsonl"
    command = ["validate", MANIFEST, "-m", model, "--errors", errors, "-q", "--image-workers", 0]
    assert call([*command, *(["--decode-images"] if decode else [])]) == 1
    found = [json.loads(line) for line in errors.read_text().splitlines()]
    names = ("row_index", "error_code", "error_message")
    assert [[row[name] for name in names] for row in found] == [
        [row[name] for name in names] for row in records if row["status"] == "error"
    ]


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (16, "with 16384 pixels at the least, no image fits"),
        (18, "the prompt has 18 tokens, 16 of them for images"),
    ],
)
def test_an_image_too_large_even_at_the_least_pixels(
    model: Path, tmp_path: Path, context: int, said: str
) -> None:
    """Alone, or with the tokens around it. Nothing is scaled down to fit."""
    row = {"prompt": "<image>", "image": str(CORPUS / "images/plain.png")}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    command = ["run", tmp_path / "m.jsonl", "-m", model, "-o", tmp_path / "out.parquet", "-q"]
    more = ["--min-pixels", 16 * 1024, "--max-model-len", context, "--image-workers", 0]
    assert call([*command, *more]) == 1
    (record,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert record["error_code"] == "prompt_too_long"
    assert said in record["error_message"]
    assert f"exceeds the context of {context}" in record["error_message"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preprocessor_config.json", ()),
        ("tokenizer.json", ()),
        ("tokenizer_config.json", ("--chat",)),
        ("config.json", ()),
        ("model.safetensors", ()),
    ],
)
def test_a_checkpoint_that_lacks_a_file(
    model: Path,
    tmp_path: Path,
    name: str,
    options: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    lacking = tmp_path / "model"
    shutil.copytree(model, lacking, ignore=shutil.ignore_patterns(name))
    output = tmp_path / "out.parquet"
    assert call(["run", MANIFEST, "-m", lacking, "-o", output, "-q", *options]) == 2
    said = capfd.readouterr().err
    assert str(lacking) in said and "Traceback" not in said
    assert ("chat template" if options else name) in said
    assert not output.exists()


@pytest.mark.parametrize("name", ["image_token_id", "vision_start_token_id"])
def test_a_tokenizer_that_lacks_a_token(
    model: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    lacking = tmp_path / "model"
    shutil.copytree(model, lacking)
    fields = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps(fields | {name: 262}))  # of 263
    tokenizer = json.loads((lacking / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: i for token, i in vocab.items() if i != 262}
    (lacking / "tokenizer.json").write_text(json.dumps(tokenizer))
    output = tmp_path / "out.parquet"
    assert call(["run", MANIFEST, "-m", lacking, "-o", output, "-q"]) == 2
    assert f"the tokenizer has no token of the model's {name} 262" in capfd.readouterr().err


@pytest.mark.parametrize(
    "image",
    ["", "<|video_pad|>", "<image_soft_token>"],
    ids=["nothing", "another token", "unknown token"],
)
def test_a_template_that_lacks_the_image_token(model: Path, tmp_path: Path, image: str) -> None:
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% else %}" + image + "{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    (tmp_path / "own.jinja").write_text(template)
    row = {"prompt": "What?", "image": str(CORPUS / "images/plain.png")}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    command = ["run", tmp_path / "m.jsonl", "-m", model, "-o", tmp_path / "out.parquet", "-q"]
    more = ["--chat", "--chat-template", tmp_path / "own.jinja", "--image-workers", 0]
    assert call([*command, *more]) == 1
    (record,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert record["error_code"] == "image_token_mismatch"
    assert (
        "1 image: expected 16 or 1 image tokens in the prompt, found 0" in record["error_message"]
    )
