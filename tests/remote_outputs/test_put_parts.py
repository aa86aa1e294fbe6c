"""Tasks that put parts of one manifest into a folder of a store, and what joins them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fast_command import FastCommands
from in_process import call
from model_folder import make_model_folder
from resumable_runs import WITH_ERRORS, read_rows, write_manifest
from s3_server import S3Server

NUM_ROWS = 40


def test_parts_are_put_and_joined(
    commands: FastCommands,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = make_model_folder(tmp_path / "model")
    manifest = write_manifest(tmp_path / "manifest.jsonl", NUM_ROWS)
    folder, joined = f"s3://{bucket}/out/", tmp_path / "joined.parquet"
    arguments = ["run", manifest, "-m", model, "--image-workers", 0, "--max-tokens", 8]
    arguments += ["-o", folder]
    monkeypatch.setenv("VLMBATCH_WORK_DIR", str(tmp_path / "work"))
    variables = {**s3.variables, "VLMBATCH_WORK_DIR": str(tmp_path / "work")}

    first = commands.run(*arguments, "--shard", "0/2", variables=variables)
    assert first.wait() == WITH_ERRORS, first.stderr
    assert call(["status", folder]) == 1
    assert "parts     2: 1 done, 1 missing" in capfd.readouterr().out
    assert call(["merge", folder, "-o", joined]) == 1
    assert f"{folder[:-1]}: 1 of 2 parts missing or not finished: 1." in capfd.readouterr().err
    assert call([*arguments, "--shard", "0/3"]) == 2
    assert "is of a run in 2 parts" in capfd.readouterr().err
    assert call([*arguments, "--overwrite"]) == 2
    assert "is of a run with --shard, in 2 parts" in capfd.readouterr().err

    second = commands.run(*arguments, "--shard", "1/2", variables=variables)
    assert second.wait() in (0, WITH_ERRORS), second.stderr
    assert call(["merge", folder, "-o", joined, "-q"]) == WITH_ERRORS
    into_store = ["merge", folder, "-o", f"s3://{bucket}/joined.parquet", "-q"]
    summary = ["--summary-json", f"s3://{bucket}/figures.json"]
    assert call([*into_store, *summary]) == WITH_ERRORS
    (tmp_path / "put.parquet").write_bytes(s3.read(bucket, "joined.parquet"))
    assert read_rows(tmp_path / "put.parquet") == read_rows(joined)
    assert json.loads(s3.read(bucket, "figures.json"))["rows"] == NUM_ROWS
    before = s3.client.head_object(Bucket=bucket, Key="joined.parquet")["LastModified"]
    shutil.rmtree(tmp_path / "work")
    assert call(into_store) == WITH_ERRORS  # nothing is left to do, on another machine either
    assert s3.client.head_object(Bucket=bucket, Key="joined.parquet")["LastModified"] == before
    s3.client.put_object(Bucket=bucket, Key="joined.parquet", Body=b"precious")
    assert call(into_store) == 2
    assert "exists, and no run on it is known" in capfd.readouterr().err
    assert [row["id"] for row in read_rows(joined)] == [f"row-{n}" for n in range(NUM_ROWS)]
