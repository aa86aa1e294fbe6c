"""What starting the command line costs, and what it says of itself."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Run, environment

import vlmbatch
from vlmbatch.processes import seconds_since_start
from vlmbatch.start_times import StartTimes

HEAVY = {"torch", "transformers", "pyarrow", "numpy", "PIL", "huggingface_hub", "tokenizers"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["bench", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from vlmbatch.cli import main
assert not any(name.partition(".")[0] == "rich" for name in sys.modules), "rich at import"
assert main({arguments!r}) == 0
print(*sorted(name.partition(".")[0] for name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stderr.split())
    assert done.stdout.strip()


def test_version(job: Run) -> None:
    done = job("answered", "--version")
    assert (done.returncode, done.stdout) == (0, f"vlmbatch {vlmbatch.__version__}\n")


@pytest.mark.parametrize("command", ["run", "validate", "status", "bench", "doctor"])
def test_help_names_every_command(job: Run, command: str) -> None:
    assert f" {command} " in job("answered", "--help").stdout
    assert f"Usage: vlmbatch {command}" in job("answered", command, "--help").stdout


def test_no_option_is_cut_off_in_80_columns(job: Run) -> None:
    for command in ("run", "validate"):
        shown = job("answered", command, "--help", COLUMNS="80").stdout
        assert "--image-feature-size" in shown
        assert "…" not in shown
    for command in ("bench", "status"):
        assert "…" not in job("answered", command, "--help", COLUMNS="80").stdout


def test_completion_is_offered(job: Run) -> None:
    assert "--install-completion" in job("answered", "--help").stdout
    script = job("answered", _VLMBATCH_COMPLETE="source_bash")
    assert (script.returncode, script.stderr) == (0, "")
    assert "complete" in script.stdout and "vlmbatch" in script.stdout


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_completion_can_be_shown_and_installed(option: str, tmp_path: Path) -> None:
    """Typer looks which shell has called it, and ends the process by itself, within its options."""
    command = f"{shlex.quote(sys.executable)} -m vlmbatch {option}; exit $?"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**environment(), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if option == "--show-completion":
        assert "complete -o default" in done.stdout
    else:
        assert "vlmbatch" in (tmp_path / ".bashrc").read_text()


def test_no_arguments_shows_the_help_as_an_error(job: Run) -> None:
    done = job("answered")
    assert done.returncode == 2
    assert "Usage: vlmbatch" in done.stdout + done.stderr
    assert "error:" not in done.stderr


def ended(command: str) -> tuple[int, str, str]:
    """Status and output of the program, whose command line is a function that ends like this."""
    code = f"""
import atexit, sys, threading, time
import vlmbatch.cli, vlmbatch.__main__

class Kept:
    def __del__(self):
        print("taken down")

kept = Kept()

def thread():
    time.sleep(0.1)
    print("thread")

def command():
    threading.Thread(target=thread).start()
    atexit.register(print, "at exit")
    print("answered")
    {command}

vlmbatch.cli.main = command
vlmbatch.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_process_ends_at_once_when_all_that_is_to_run_at_exit_has_run() -> None:
    """Threads are waited for, and standard output, here a pipe, has all that was printed."""
    assert ended("return 3") == (3, "answered\nthread\nat exit\n", "")


def test_an_interrupt_while_commands_are_imported_prints_no_traceback(tmp_path: Path) -> None:
    stub = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    (tmp_path / "typer.py").write_text(stub)
    command = [sys.executable, "-m", "vlmbatch", "--version"]
    env = environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_process_that_something_else_ends_takes_its_time() -> None:
    status, output, _ = ended("sys.exit(4)")
    assert (status, output) == (4, "answered\nthread\nat exit\ntaken down\n")
    status, _, error = ended("raise ValueError(5)")
    assert (status, error.splitlines()[-1]) == (1, "ValueError: 5")


def test_stages_are_those_until_the_first_answer() -> None:
    """What else ends then, as the first of the good rows behind a bad one, is no part of it."""
    times = StartTimes.of_process()
    times.end("manifest")
    times.end("manifest")
    times.end("first_answer")
    before = times.figures()
    times.end("first_row")
    assert times.figures() == before
    assert [*before["stages"]] == ["process", "manifest", "first_answer"]
    # Both are read in ticks of a hundredth of a second, and rounded.
    assert 0 < before["stages"]["process"] < seconds_since_start() + 0.05
