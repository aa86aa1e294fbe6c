"""Refusals call a setting as the user has given it: option, variable, key of a file, or field."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from in_process import call

from vlmbatch.config import ImageResolution, SamplingParams
from vlmbatch.errors import ConfigError, FieldError

REFUSED = " is given as 5000, but the model's images always take 100 tokens"


@pytest.mark.parametrize("given_by", ["--max-pixels", "VLMBATCH_MAX_PIXELS", "max_pixels"])
def test_what_the_model_contradicts(
    given_by: str,
    samples: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments: list[object] = ["validate", samples / "manifest.jsonl", "-m", samples / "tiny-llava"]
    if given_by == "--max-pixels":
        arguments += ["--max-pixels", 5000]
    elif given_by == "VLMBATCH_MAX_PIXELS":
        monkeypatch.setenv("VLMBATCH_MAX_PIXELS", "5000")
    else:
        (tmp_path / "job.toml").write_text("max_pixels = 5000\n")
        arguments += ["--config", tmp_path / "job.toml"]
    assert call(arguments) == 2
    assert f"error: {given_by}{REFUSED}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p", 3], "--top-p must be above 0 and at most 1, got 3.0"),
        (["--n", 0], "--n must be from 1 to 128, got 0"),
        (["--min-tokens", 9], "--min-tokens must be from 0 to --max-tokens, which is 2, got 9"),
        (["--regex", "a("], "--regex cannot be used: "),
        (["--regex", "a", "--ignore-eos"], "--ignore-eos cannot be combined with --regex: "),
        (["--choices", "a,b", "--regex", "a"], "--choices and --regex cannot be combined: "),
        (["--choices", "a,b", "--n", 2], "--choices cannot be asked for with --n, got 2: "),
        (["--max-pixels", 7, "--min-pixels", 9], "--min-pixels is 9, above --max-pixels, which"),
        (["--disable-image-processor"], "--disable-image-processor and --image-input-type pixel"),
        (["--image-decoder", "gpu", "--image-workers", 0], "--image-decoder gpu and --image-work"),
        (["--host-memory", "1MiB"], "--host-memory must be at least 16777216 bytes (16MiB)"),
        (["--work-dir", ""], "--work-dir must be a path, got ''"),
        (["--tokenizer", ""], "--tokenizer must not be empty"),
    ],
)
def test_what_options_contradict(
    options: list[object], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "m.jsonl", "-m", "x", "-o", tmp_path / "o.parquet", "--max-tokens", 2]
    assert call([*common, *options]) == 2
    assert f"error: {message}" in capfd.readouterr().err


def test_python_is_told_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^top_p must be above 0 and at most 1, got 3\.0$"):
        SamplingParams(top_p=3.0)
    with pytest.raises(ConfigError, match=r"^min_pixels is 9, above max_pixels, which is 7$"):
        ImageResolution(max_pixels=7, min_pixels=9)


def test_other_words_of_a_message_stay() -> None:
    error = FieldError("n", "is no n-gram of --n or a_n beside stop, got 'n stop'", "stop", "seed")
    pickle.loads(pickle.dumps(error)).call({"n": "--n"})
    error.call({"n": "--n", "stop": "--stop", "model": "--model"})
    assert str(error) == "--n is no n-gram of --n or a_n beside --stop, got 'n stop'"
