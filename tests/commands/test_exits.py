"""Exit statuses, and what is said where."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import real_command
from command_line import FAKE_JOB, Run, environment
from fast_command import FastCommands

RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet")


@pytest.mark.parametrize(
    ("behaviour", "status", "message"),
    [
        ("answered", 0, "3 ok, 0 errors"),
        ("with_errors", 1, "2 ok, 1 error\n"),
        ("refused", 2, "error: m.jsonl:1: not a JSON object\n"),
        ("disk_full", 74, "error: cannot write out.parquet: No space left on device\n"),
        ("no_files", 74, "error: [Errno 24] Too many open files: 'a.txt': free some"),
        ("bug", 70, "error: internal error: KeyError: 'planted'\n"),
        ("end_of_file", 70, "error: internal error: EOFError: planted\n"),
        ("cut_module", 70, "error: a compiled module (.pyc) was cut short, as on a full disk"),
    ],
)
def test_status_of_a_run(job: Run, behaviour: str, status: int, message: str) -> None:
    done = job(behaviour, *RUN)
    lines = [line.rstrip() + "\n" for line in done.stderr.splitlines()]
    assert done.returncode == status
    assert message in "".join(lines)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_exit_zero_forgives_error_rows_only(job: Run) -> None:
    assert job("with_errors", *RUN, "--exit-zero").returncode == 0
    assert job("refused", *RUN, "--exit-zero").returncode == 2


@pytest.mark.parametrize(("behaviour", "flag"), [("bug", "-v"), ("refused", "-vv")])
def test_verbose_shows_the_traceback(job: Run, behaviour: str, flag: str) -> None:
    assert "Traceback (most recent call last)" in job(behaviour, *RUN, flag).stderr


def test_quiet_prints_errors_only(job: Run) -> None:
    assert job("with_errors", *RUN, "-q").stderr == ""
    assert job("refused", *RUN, "-q").stderr == "error: m.jsonl:1: not a JSON object\n"


def test_json_log(job: Run) -> None:
    finished = json.loads(job("with_errors", *RUN, "--log-format", "json").stderr)
    assert (finished["level"], finished["rows"], finished["errors"]) == ("info", 3, 1)
    refused = json.loads(job("refused", *RUN, "--log-format", "json").stderr)
    assert (refused["level"], refused["message"]) == ("error", "m.jsonl:1: not a JSON object")


@pytest.mark.parametrize(
    ("sent", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
@pytest.mark.parametrize("behaviour", ["slow", "confused"])
def test_signals(
    commands: FastCommands,
    tmp_path: Path,
    behaviour: str,
    sent: signal.Signals,
    status: int,
    word: str,
) -> None:
    command = commands.start(*RUN, folder=tmp_path, job=behaviour)
    command.wait_until(lambda: command.stdout == "running\n")
    command.send_signal(sent)
    assert command.wait() == status
    assert (
        command.stderr == f"error: {word}: 2 rows are done; run the same command again to resume\n"
    )


def test_a_stopped_run_says_what_is_done_and_what_to_do(job: Run, tmp_path: Path) -> None:
    done = job("stopped", *RUN, "--summary-json", "s.json")
    assert done.returncode == 143
    assert "150 of 300 done: 1 error; 100 done by an earlier run" in done.stderr
    assert "out.parquet.vlmbatch" in done.stderr
    assert done.stderr.endswith(
        "error: stopped by SIGTERM. "
        "150 of 300 rows are done; run the same command again to resume\n"
    )
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["exit_status"], summary["rows_total"], summary["rows_finished"]) == (
        143,
        300,
        150,
    )
    assert summary["error"].startswith("stopped by SIGTERM")


def test_what_to_do_fits_the_command(job: Run) -> None:
    assert "again without --overwrite to resume" in job("stopped", *RUN, "--overwrite").stderr
    streamed = job("stopped", "run", "-", "-m", "x", "-q").stderr
    assert streamed.endswith("rows are done; standard output keeps nothing to resume from\n")


def test_a_complete_output_leaves_nothing_to_do(job: Run) -> None:
    done = job("complete", *RUN)
    assert done.returncode == 1
    assert done.stderr.startswith("nothing to do: the output is complete\n")
    assert "rows    3: 2 ok, 1 error" in done.stderr
    assert "--retry-failed answers the error rows again, --overwrite starts anew" in done.stderr
    assert "rows/s" not in done.stderr


@pytest.mark.parametrize(
    ("behaviour", "status"), [("refused", 2), ("disk_full", 74), ("no_files", 74), ("bug", 70)]
)
def test_a_failure_is_summarised_too(job: Run, tmp_path: Path, behaviour: str, status: int) -> None:
    (tmp_path / "s.json").write_text('{"exit_status": 0}')
    assert job(behaviour, *RUN, "--summary-json", "s.json").returncode == status
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["exit_status"] == status
    assert summary["error"]


def test_a_failure_outlives_that_of_its_summary(job: Run) -> None:
    done = job("refused", *RUN, "--summary-json", "/proc/none.json")
    assert done.returncode == 2
    assert "cannot write /proc/none.json" in done.stderr
    assert done.stderr.endswith("error: m.jsonl:1: not a JSON object\n")


def test_a_closed_standard_output_ends_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(FAKE_JOB), "talkative", "run", "-", "-m", "x"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert "an answer" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("option", ["--help", "--version"])  # short, and soon written
def test_a_text_whose_reader_has_left_ends_quietly(tmp_path: Path, option: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:  # noqa: PTH123  a descriptor
        done = subprocess.run(
            [sys.executable, "-m", "vlmbatch", option],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("args", [("run", "--help"), ("doctor",)])
def test_so_does_every_other_text_and_table(args: tuple[str, ...]) -> None:
    pipe = real_command.named_pipe()
    command = real_command.start(*args, stdout=pipe)
    pipe.open().close()
    assert (command.wait(), command.stderr) == (141, "")


def test_summary_json(job: Run, tmp_path: Path) -> None:
    done = job("with_errors", *RUN, "--summary-json", "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert done.returncode == summary["exit_status"] == 1
    assert (summary["rows"], summary["ok"]) == (3, 2)
    assert summary["errors_by_code"] == {"image_missing": 1}
    assert summary["output"] == "out.parquet"
    assert summary["error"] is None


def test_summary_json_on_standard_output_is_json_alone(job: Run) -> None:
    assert json.loads(job("answered", *RUN, "--summary-json", "-").stdout)["rows"] == 3


def test_validate(job: Run) -> None:
    clean = job("answered", "validate", "m.jsonl", "-m", "x")
    assert (clean.returncode, clean.stdout) == (0, "")
    assert "3 rows checked" in clean.stderr
    done = job("with_errors", "validate", "m.jsonl", "-m", "x", "--errors", "-")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "row_index": 1,
        "id": "row-1",
        "file": "m.jsonl",
        "line": 2,
        "error_code": "image_missing",
        "error_message": "no file at images/7.png",
    }
    assert "m.jsonl:2 (id row-1): no file at images/7.png" in done.stderr


def test_validate_writes_errors_to_a_file(job: Run, tmp_path: Path) -> None:
    done = job("with_errors", "validate", "m.jsonl", "-m", "x", "--errors", "e.jsonl", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert json.loads((tmp_path / "e.jsonl").read_text())["line"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_validate_on_a_full_disk(job: Run) -> None:
    done = job("with_errors", "validate", "m.jsonl", "-m", "x", "--errors", "/dev/full")
    assert done.returncode == 74
    assert done.stderr == "error: cannot write /dev/full: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
class TestStandardOutputOnAFullDisk:
    """Unbuffered it fails as it is written to, otherwise at its end."""

    printing = pytest.mark.parametrize(
        "arguments",
        [
            ("--version",),
            ("--help",),
            ("validate", "m.jsonl", "-m", "x", "-q", "--summary-json", "-"),
            ("validate", "m.jsonl", "-m", "x", "-q", "--errors", "-"),
        ],
    )
    told = re.compile(r"error: cannot write (standard output|-): No space left on device\n")

    @printing
    def test_buffered(
        self, commands: FastCommands, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        done = commands.run(*arguments, folder=tmp_path, job="with_errors", stdout="/dev/full")
        assert done.wait() == 74
        assert self.told.fullmatch(done.stderr)

    @printing
    def test_unbuffered(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, str(FAKE_JOB), "with_errors", *arguments],
                cwd=tmp_path,
                env=environment(PYTHONUNBUFFERED="1"),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
            )
        assert done.returncode == 74
        assert self.told.fullmatch(done.stderr)

    def test_of_a_command_that_imports_torch(self) -> None:
        done = real_command.start("doctor", "--json", stdout="/dev/full")
        assert done.wait() == 74
        assert self.told.fullmatch(done.stderr)
