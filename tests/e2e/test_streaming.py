"""JSONL in a pipe on both ends: rows answered as they come, signals heard while none comes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from real_command import named_pipe, run, start

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_rows_are_answered_as_they_come_and_signals_heard(
    number: signal.Signals, status: int
) -> None:
    row = json.loads((SAMPLES / "manifest.jsonl").read_text().splitlines()[0])
    rows, answers = named_pipe(), named_pipe()
    arguments = ("run", "-", "-m", SAMPLES / "tiny-llava", "-q")
    command = start(*arguments, folder=SAMPLES, stdin=rows, stdout=answers)
    with rows.open("w") as stdin, answers.open() as stdout:
        stdin.write(json.dumps(row) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        assert answer["text"] == row["answer"]
        command.send_signal(number)
        assert command.wait(20) == status
        assert "Traceback" not in command.stderr


def test_a_stream_cannot_overwrite_the_result_columns() -> None:
    rows = [
        {"id": "a", "prompt": "hello"},
        {"id": "b", "prompt": 5, "status": "ok", "row_index": 99, "error_code": None},
    ]
    command = ["run", "-", "-m", SAMPLES / "tiny-llava", "-q", "--max-tokens", 3]
    done = run(*command, input="".join(json.dumps(row) + "\n" for row in rows))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(a["row_index"], a["status"]) for a in answers] == [(0, "ok"), (1, "error")]
    assert answers[1]["error_code"] is not None
    assert done.returncode == 1
