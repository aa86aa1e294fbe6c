"""``--column-prefix``: manifests with columns that are called like the output's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from in_process import call
from model_folder import make_model_folder

import vlmbatch.session.replica
from vlmbatch.jobs.status import read_status
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.reader import OutputReader

ROOT = Path(__file__).parents[2]
PREFIX = "out_"
OWN = [f"{PREFIX}{name}" for name in RESULT_SCHEMA.names]
NUM_ROWS = 100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that an engine has answered."""
    rows: list[int] = []
    monkeypatch.setattr(
        vlmbatch.session.replica, "load_engine", lambda config, inputs: FakeEngine(rows.extend)
    )
    return rows


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write(tmp_path / "m.parquet", range(NUM_ROWS))


def write(path: Path, numbers: Any) -> Path:
    """Rows as img2dataset has them; some cannot be answered."""
    rows = [
        {
            "key": f"{number:05}",
            "prompt": None if number % 50 == 7 else f"What is {number}?",
            "status": "success",
            "error_message": None if number % 2 else "none",
            "text": f"caption {number}",
            "row_index": float(number),
        }
        for number in numbers
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(model: Path, manifest: Path | str, output: Path | str, *options: object) -> int:
    arguments = ("run", manifest, "-m", model, "-o", output, "--id-column", "key", "-q")
    return call([*arguments, "--max-tokens", 4, *options])


def rows_of(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("*.parquet")) if output.is_dir() else [output]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


@pytest.mark.parametrize("command", ["run", "validate"])
def test_the_refusal_names_the_option(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    more = ["-o", tmp_path / "a.parquet"] if command == "run" else []
    arguments = [command, manifest, "-m", model, "--id-column", "key", *more]
    assert call(arguments) == 2
    assert "--column-prefix vlmbatch_" in capsys.readouterr().err
    assert call([*arguments, "--column-prefix", "vlmbatch_"]) == 1  # two rows without a prompt


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("shards", [(), ("--shard-rows", 30)])
def test_columns_of_both_are_there(
    model: Path, tmp_path: Path, kind: str, shards: tuple[object, ...]
) -> None:
    manifest = write(tmp_path / f"m.{kind}", range(NUM_ROWS))
    output = tmp_path / ("out" if shards else "out.parquet")
    assert run(model, manifest, output, "--column-prefix", PREFIX, *shards) == 1
    rows = rows_of(output)
    assert list(rows[0]) == [*OWN, "status", "error_message", "text", "row_index"]
    assert [row["out_row_index"] for row in rows] == list(range(NUM_ROWS))
    assert [row["row_index"] for row in rows] == list(map(float, range(NUM_ROWS)))
    assert rows[3]["text"] == "caption 3" and rows[3]["out_text"] != "caption 3"
    assert (rows[7]["status"], rows[7]["out_status"]) == ("success", "error")


def test_standard_output(model: Path, manifest: Path, capfdbinary: Any) -> None:
    assert run(model, manifest, "-", "--column-prefix", PREFIX) == 1
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert list(lines[0]) == [*OWN, "status", "error_message", "text", "row_index"]
    assert (lines[3]["text"], lines[3]["out_status"]) == ("caption 3", "ok")


@pytest.mark.parametrize("shards", [(), ("--shard-rows", 30)])
def test_what_reads_outputs_back(
    model: Path, tmp_path: Path, computed: list[int], shards: tuple[object, ...]
) -> None:
    manifest = write(tmp_path / "m.jsonl", range(NUM_ROWS))
    output = tmp_path / ("out" if shards else "out.parquet")
    options = ("--column-prefix", PREFIX, *shards)
    assert run(model, manifest, output, *options) == 1
    first = rows_of(output)
    assert read_status(output).errors.keys() == {
        row["out_error_code"] for row in first if row["out_error_code"]
    }
    with OutputReader(output) as reader:
        assert reader.read(0, ["status", "text"]).column_names == ["status", "text"]
    computed.clear()
    assert run(model, manifest, output, *options) == 1  # nothing is left to do
    assert computed == []
    failed = [row["out_row_index"] for row in first if row["out_error_code"]]
    assert run(model, manifest, output, *options, "--retry-failed") == 1
    assert set(computed) <= set(failed)
    computed.clear()
    write(manifest, range(1, NUM_ROWS + 1))
    assert run(model, manifest, output, *options, "--incremental") == 1
    assert NUM_ROWS - 1 in computed and len(computed) <= 1 + len(failed)
    again = rows_of(output)
    kept = [row for row in again if row["out_error_code"] is None][:-1]
    texts = {row["out_id"]: row["out_text"] for row in first}
    assert all(row["out_text"] == texts[row["out_id"]] for row in kept)


def test_the_prefix_is_part_of_the_run(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    assert run(model, manifest, output, "--column-prefix", PREFIX) == 1
    assert run(model, manifest, output, "--column-prefix", "b_") == 2
    assert 'column_prefix: "out_" -> "b_"' in capsys.readouterr().err


def test_an_output_is_a_manifest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of one run are the prompts of the next, and of the next again."""
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(9)))
    first, second, third = (tmp_path / f"{name}.parquet" for name in ("first", "second", "third"))
    common = ["-m", model, "--max-tokens", 4, "-q"]
    assert call(["run", manifest, "-o", first, *common]) == 0
    again = ["--prompt-column", "text", *common, "--column-prefix", "second_"]
    assert call(["run", first, "-o", second, *again]) == 0
    rows = pq.read_table(second).to_pylist()
    assert [row["second_id"] for row in rows] == [str(number) for number in range(9)]
    assert rows[4]["row_index"] == 4
    repeated = ["run", second, "-o", third, "--prompt-column", "second_text", *common]
    assert call([*repeated, "--column-prefix", "second_"]) == 2
    assert (
        'column "second_row_index" has a name that the output reserves' in capsys.readouterr().err
    )
    assert call([*repeated, "--column-prefix", "third_"]) == 0


def test_batch_requests_may_have_such_fields(model: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    body = {"model": "m", "prompt": "Hello", "max_tokens": 3}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    requests.write_text(json.dumps({**request, "status": "queued"}) + "\n")
    output = tmp_path / "out.parquet"
    arguments = ["run", requests, "-m", model, "-o", output, "-q"]
    assert call(arguments) == 2
    assert call([*arguments, "--column-prefix", PREFIX]) == 0
    (row,) = rows_of(output)
    assert (row["status"], row["out_status"], row["out_id"]) == ("queued", "ok", "a")


def test_a_prefix_is_text(model: Path, manifest: Path, tmp_path: Path) -> None:
    assert run(model, manifest, tmp_path / "a.parquet", "--column-prefix", "a\udce9") == 2


def test_features_take_columns_of_any_name(manifest: Path, tmp_path: Path) -> None:
    arguments = ["features", manifest, "-m", ROOT / "samples/tiny-llava", "-o", tmp_path / "f"]
    assert call([*arguments, "--id-column", "key", "--image-workers", 0, "-q", "--exit-zero"]) == 0
    assert json.loads((tmp_path / "f/manifest.jsonl").open().readline())["text"] == "caption 0"


def test_sample_answers_are_shown(tmp_path: Path) -> None:
    outputs = [tmp_path / "plain.parquet", tmp_path / "prefixed.parquet"]
    manifest = ROOT / "samples/manifest.jsonl"
    answers = [json.loads(line)["answer"] for line in manifest.open()]
    for output, prefix in zip(outputs, ("", PREFIX), strict=True):
        rows = [
            {
                f"{prefix}row_index": index,
                f"{prefix}status": "error" if answer is None else "ok",
                f"{prefix}text": answer,
                f"{prefix}error_code": "image_missing" if answer is None else None,
                "answer": answer,
            }
            for index, answer in enumerate(answers)
        ]
        metadata = {"vlmbatch.column_prefix": prefix}
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), output)
        script = ROOT / "samples/show_answers.py"
        command = [sys.executable, str(script), str(manifest), str(output), "--exit-status", "1"]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
