"""Standard streams that are closed, full or gone: right exit statuses, no log in a data file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import FAKE_JOB, environment

ROOT = Path(__file__).parents[2]
RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet")
COMMANDS = {
    "run": ((*RUN, "--summary-json", "s.json"), 1, {"s.json"}),
    "stream": (("run", "m.jsonl", "-m", "x", "-o", "-"), 1, set()),
    "validate": (("validate", "m.jsonl", "-m", "x", "--errors", "e.jsonl"), 1, {"e.jsonl"}),
    "wrong usage": (("run", "m.jsonl", "--none"), 2, set()),
}
# Makes standard error the terminal of a session, as a login does, and becomes the command.
LOGIN = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def closing(descriptors: tuple[int, ...]) -> list[str]:
    """The start of a command line that is run with these descriptors closed."""
    redirections = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in descriptors)
    return ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable]


@pytest.mark.parametrize(
    ("name", "closed"), [*((name, (2,)) for name in COMMANDS), ("run", (0, 2))], ids=str
)
def test_closed_streams(name: str, closed: tuple[int, ...], tmp_path: Path) -> None:
    arguments, status, written = COMMANDS[name]
    done = subprocess.run(
        [*closing(closed), str(FAKE_JOB), "with_errors", *arguments],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, "")
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files.keys() == written
    assert all(json.loads(text) for text in files.values())


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)], ids=str)
def test_without_a_standard_output(closed: tuple[int, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [*closing(closed), str(FAKE_JOB), "answered", *RUN],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 74
    if 2 not in closed:
        assert done.stderr.startswith("error: standard output is closed: redirect it")
        assert done.stderr.count("\n") == 1


def test_a_run_without_streams_is_as_any_other(tmp_path: Path) -> None:
    """Files are opened, processes started and lines logged: none may take another's number."""
    rows = [
        {"prompt": "USER: <image>\nWhat number is written? ASSISTANT:", "image": name}
        for name in (str(ROOT / "samples/images/1001000001.jpg"), "none.jpg")
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["run", "m.jsonl", "-m", str(ROOT / "samples/tiny-llava"), "-o", "out.parquet"]
    done = subprocess.run(
        [*closing((0, 2)), "-m", "vlmbatch", *arguments, "--image-workers", "1", "-vv"],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    answers = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [answer["text"] for answer in answers] == ["92", None]
    assert [answer["error_code"] for answer in answers] == [None, "image_missing"]


def test_rows_from_a_standard_input_that_is_closed(tmp_path: Path) -> None:
    done = subprocess.run(
        [*closing((0,)), "-m", "vlmbatch", "run", "-", "-m", str(ROOT / "samples/tiny-llava")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: standard input is closed")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("behaviour", "log_format", "status"), [("answered", "text", 0), ("refused", "json", 2)]
)
def test_a_log_that_cannot_be_written_changes_nothing(
    behaviour: str, log_format: str, status: int, tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(FAKE_JOB), behaviour, *RUN, "--log-format", log_format],
            cwd=tmp_path,
            env=environment(),
            stderr=full,
            timeout=60,
        )
    assert done.returncode == status


@pytest.mark.skipif(sys.platform != "linux", reason="terminals hang up otherwise elsewhere")
def test_a_terminal_that_closes(tmp_path: Path) -> None:
    """It can be written to no more, and sends SIGHUP."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", LOGIN, sys.executable, str(FAKE_JOB), "slow", *RUN]
    process = subprocess.Popen(
        [*command, "--summary-json", "s.json"],
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    os.close(ours)
    assert process.wait(timeout=30) == 129
    process.stdout.close()
    assert json.loads((tmp_path / "s.json").read_text())["exit_status"] == 129


def test_a_hang_up_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable]
    process = subprocess.Popen(
        [*ignoring, str(FAKE_JOB), "slow", *RUN],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    process.stdout.close()
