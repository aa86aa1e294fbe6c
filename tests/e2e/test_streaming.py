"""JSONL in a pipe on both ends: rows answered as they come, signals heard while none comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_rows_are_answered_as_they_come_and_signals_heard(
    number: signal.Signals, status: int
) -> None:
    row = json.loads((SAMPLES / "manifest.jsonl").read_text().splitlines()[0])
    with subprocess.Popen(
        [sys.executable, "-m", "vlmbatch", "run", "-", "-m", str(SAMPLES / "tiny-llava"), "-q"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=SAMPLES,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["text"] == row["answer"]
        process.send_signal(number)
        assert process.wait(timeout=20) == status
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_stream_cannot_overwrite_the_result_columns() -> None:
    rows = [
        {"id": "a", "prompt": "hello"},
        {"id": "b", "prompt": 5, "status": "ok", "row_index": 99, "error_code": None},
    ]
    command = [sys.executable, "-m", "vlmbatch", "run", "-", "-m", str(SAMPLES / "tiny-llava")]
    done = subprocess.run(
        [*command, "-q", "--max-tokens", "3"],
        input="".join(json.dumps(row) + "\n" for row in rows),
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["row_index"], a["status"]) for a in answers] == [(0, "ok"), (1, "error")]
    assert answers[1]["error_code"] is not None
    assert done.returncode == 1
