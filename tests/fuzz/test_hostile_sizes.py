"""Small files that claim to be huge, and deep ones: refused at once, in little memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fast_command import FastCommands
from fuzzing import ERROR_ROWS, MODEL, OK, REFUSED, run_manifest
from handmade_parquet import Declared, handmade
from in_process import call

HUGE = 10**12


@pytest.mark.parametrize(
    ("declared", "status", "says"),
    [
        (Declared(), OK, "1 can be answered"),
        (Declared(file_rows=HUGE), REFUSED, f"declares {HUGE} rows, but 1 in its row groups"),
        (Declared(file_rows=HUGE, group_rows=HUGE), REFUSED, f"{HUGE} rows in a file of 122 bytes"),
        (
            Declared(file_rows=HUGE, group_rows=HUGE, chunk_values=HUGE),
            REFUSED,
            f"declares {HUGE} rows in a file of",
        ),
        (Declared(file_rows=2**63 - 1, group_rows=2**63 - 1), REFUSED, "rows in a file of"),
        (Declared(file_rows=-1, group_rows=-1), REFUSED, "a row group of -1 rows"),
        (Declared(file_rows=1, groups=2), REFUSED, "declares 1 rows, but 2"),
        (Declared(file_rows=9, group_rows=9), ERROR_ROWS, "cannot be read from row 2 on"),
        (Declared(group_bytes=-1), OK, "1 can be answered"),
        (Declared(group_bytes=2**62), OK, "1 can be answered"),
        (Declared(chunk_bytes=2**62), ERROR_ROWS, "cannot be read from row 1 on"),
        (Declared(page_bytes=2**31 - 1, codec="zstd"), ERROR_ROWS, "cannot be read"),
        (Declared(page_bytes=2**31 - 1, codec="gzip"), ERROR_ROWS, "cannot be read"),
        (Declared(page_bytes=2**31 - 1, codec="snappy"), ERROR_ROWS, "cannot be read"),
        (Declared(page_values=2**31 - 1), OK, "1 can be answered"),
        (Declared(text_bytes=2**32 - 1), ERROR_ROWS, "cannot be read"),
    ],
)
def test_parquet_that_declares_absurd_sizes(
    commands: FastCommands, declared: Declared, status: int, says: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.parquet"
    manifest.write_bytes(handmade(declared))
    command = commands.run("validate", manifest, "-m", MODEL)
    assert command.wait() == status, command.stderr
    assert says in command.stderr and "Traceback" not in command.stderr
    assert command.memory_taken < 110 * 2**20


def test_a_million_brackets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], free_model: None
) -> None:
    manifest = tmp_path / "m.jsonl"
    deep = b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}\n"
    manifest.write_bytes(b'{"prompt": "Hello."}\n' + deep + b'{"b":' * 10**6 + b"\n")
    assert run_manifest(manifest)[0] == ERROR_ROWS
    manifest.write_bytes(b"[" * 10**6)
    assert run_manifest(manifest)[0] == REFUSED
    assert "m.jsonl:1: not a JSON object but nested arrays" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"],
)
@pytest.mark.parametrize("content", ["brackets", "huge", "pipe", "folder"])
def test_checkpoint_files_of_no_use(
    name: str, content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.safetensors"))
    path = model / name
    path.unlink()
    if content == "brackets":
        path.write_bytes(b'{"a":' + b"[" * 10**6)
    elif content == "huge":
        path.touch()
        os.truncate(path, 2**30)
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    (tmp_path / "m.jsonl").write_text('{"prompt": "Hello."}\n')
    assert call(["validate", tmp_path / "m.jsonl", "-m", model]) == REFUSED
    assert str(path) in capfd.readouterr().err
