"""The commands as users type them, over the sample model and its manifest.

One of them from the start of Python on; the others are forked with torch already imported.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import environment
from real_command import named_pipe, run, start

import vlmbatch

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples/tiny-llava"
MANIFEST = ROOT / "samples/manifest.jsonl"
PLANTED = {"image_unreadable", "image_token_mismatch"}


def planted_rows() -> set[int]:
    lines = MANIFEST.read_text().splitlines()
    return {index for index, line in enumerate(lines) if json.loads(line)["answer"] is None}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "out.parquet"
    done = subprocess.run(
        [sys.executable, "-m", "vlmbatch", "run", MANIFEST, "-m", MODEL, "-o", path],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert " ok, 2 errors" in done.stderr
    assert all(code in done.stderr for code in PLANTED)
    return path


def test_answers_are_right_and_in_order(output: Path) -> None:
    rows = pq.read_table(output).to_pylist()
    wanted = [json.loads(line) for line in MANIFEST.read_text().splitlines()]
    assert [(row["row_index"], row["id"]) for row in rows] == [
        (index, row["id"]) for index, row in enumerate(wanted)
    ]
    assert {row["row_index"] for row in rows if row["status"] == "error"} == planted_rows()
    assert {row["error_code"] for row in rows} == PLANTED | {None}
    right = [row["text"].strip() == row["answer"] for row in rows if row["status"] == "ok"]
    assert len(right) >= 22 and all(right)


def test_metadata_says_what_was_run(output: Path) -> None:
    metadata = pq.read_schema(output).metadata
    assert metadata[b"vlmbatch.version"].decode() == vlmbatch.__version__
    assert metadata[b"vlmbatch.model"].decode() == str(MODEL)
    assert {b"vlmbatch.run_fingerprint", b"vlmbatch.sampling", b"vlmbatch.manifest_sha256"} <= (
        metadata.keys()
    )


def test_a_complete_output_is_left_alone(output: Path) -> None:
    before = output.read_bytes()
    done = run("run", MANIFEST, "-m", MODEL, "-o", output)
    assert done.returncode == 1
    assert done.stderr.startswith("nothing to do: the output is complete")
    other = run("run", MANIFEST, "-m", MODEL, "-o", output, "--max-tokens", "3")
    assert other.returncode == 2
    assert "sampling.max_tokens: 256 -> 3" in other.stderr and "--overwrite" in other.stderr
    assert output.read_bytes() == before


def test_status_of_the_output(output: Path) -> None:
    done = run("status", output, "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert (found["state"], found["rows_left"], found["num_errors"]) == ("complete", 0, 2)
    assert (found["model"], found["manifest"]) == (str(MODEL), str(MANIFEST))
    assert f"run {MANIFEST} -m {MODEL} -o {output}" in found["command"]


def check_start(summary: Path, *, ran: bool) -> None:
    """Stages follow one another, and together are the whole."""
    start = json.loads(summary.read_text())["start"]
    stages = ["process", "imports", "model_files", "manifest"]
    if ran:
        stages += ["devices", "engine", "first_row", "first_answer"]
        assert [*start["engine"]] == ["imports", "device", "weights", "kv_cache"]
        assert sum(start["engine"].values()) <= start["stages"]["engine"] + 0.01
        assert start["graphs"] == {"captured": 0, "seconds": 0.0}
        assert start["kernels"] == {"compiled": 0, "loaded": 0, "seconds": 0.0}
    assert [*start["stages"]] == stages
    assert ("engine" in start) == ran
    assert all(seconds >= 0 for seconds in start["stages"].values())
    assert start["seconds"] == round(sum(start["stages"].values()), 3)


def test_without_failed_rows_there_is_nothing_to_retry(tmp_path: Path) -> None:
    command = ("run", MANIFEST, "-m", MODEL, "--limit", "3", "-o", tmp_path / "out.parquet")
    times = ("--summary-json", tmp_path / "summary.json")
    first = run(*command, *times, "-v")
    assert first.returncode == 0
    check_start(tmp_path / "summary.json", ran=True)
    assert re.search(r"^debug: start: [\d.]+ s: process [\d.]+, .*first answer", first.stderr, re.M)
    before = (tmp_path / "out.parquet").read_bytes()
    done = run(*command, *times, "--retry-failed")
    check_start(tmp_path / "summary.json", ran=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        0,
        "nothing to do: the output is complete",
    )
    assert (tmp_path / "out.parquet").read_bytes() == before


def test_stdin_to_stdout() -> None:
    lines = MANIFEST.read_text().splitlines(keepends=True)
    good = [line for line in lines if json.loads(line)["answer"] is not None][:5]
    done = run("run", "-", "-m", MODEL, "-q", input="".join(good), folder=MANIFEST.parent)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["row_index"] for row in rows] == list(range(5))
    assert [row["text"].strip() for row in rows] == [json.loads(line)["answer"] for line in good]


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    pipe = named_pipe()
    command = start("run", MANIFEST, "-m", MODEL, "-o", "-", "-q", stdout=pipe)
    pipe.open().close()
    assert command.wait() == 141
    assert command.stderr == ""


def test_a_signal_leaves_what_is_done_and_nothing_else(tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    rows = [json.loads(line) for line in MANIFEST.read_text().splitlines()]
    with many.open("w") as file:
        for index in range(5_000):
            row = rows[index % len(rows)]
            image = str(MANIFEST.parent / row["image"])
            file.write(json.dumps({"prompt": row["prompt"], "image": image}) + "\n")
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "out.parquet"
    command = start("run", many, "-m", MODEL, "-o", output)
    command.wait_until(lambda: any(folder.glob("out.parquet.vlmbatch/journal-*")))
    running = run("status", output)
    assert (running.returncode, running.stderr) == (75, "")
    assert f"written now by process {command.pid} on " in running.stdout
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 143, command.stderr
    stderr = command.stderr
    said = "stopped by SIGTERM. ([0-9,]+) of 5,000 rows are done; run the same command again"
    match = re.search(said, stderr)
    assert match is not None, stderr
    assert "Traceback" not in stderr
    assert {path.name for path in folder.iterdir()} == {"out.parquet.vlmbatch"}
    left = json.loads(run("status", output, "--json").stdout)
    assert left["state"] == "interrupted"
    assert left["rows_done"] == int(match[1].replace(",", ""))


def test_validate_finds_the_planted_errors_without_torch(tmp_path: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    code = f"""
import sys
from vlmbatch.cli import main
status = main(["validate", {str(MANIFEST)!r}, "-m", {str(MODEL)!r}, "--decode-images",
               "--errors", {str(errors)!r}])
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert " can be answered, 2 cannot" in done.stderr
    found = [json.loads(line) for line in errors.read_text().splitlines()]
    assert {row["row_index"] for row in found} == planted_rows()
    assert {row["error_code"] for row in found} == PLANTED
    assert all(f"{MANIFEST}:{row['line']} (id {row['id']}): " in done.stderr for row in found)


def test_the_sample_configuration_fits_the_sample_model() -> None:
    done = run("validate", MANIFEST, "--config", "configs/tiny-llava.toml", "--limit", "5")
    assert done.returncode == 0, done.stderr


def test_an_argument_that_contradicts_the_model_is_refused() -> None:
    done = run("run", MANIFEST, "-m", MODEL, "-o", "-", "--image-feature-size", "576")
    assert (done.returncode, done.stdout) == (2, "")
    assert "576" in done.stderr and "100" in done.stderr
