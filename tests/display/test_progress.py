"""The live display, the lines in place of it, and what is left at the end."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import FAKE_JOB, environment
from rich.console import Console

from vlmbatch.display import progress
from vlmbatch.display.progress import Rates, RunDisplay, display_mode, duration
from vlmbatch.display.summary import print_run_summary
from vlmbatch.stats import RunStats, Transfer
from vlmbatch.types import ErrorExample

COLOUR = re.compile(r"\x1b\[[\d;]*3\d")


def stats_of(**values: object) -> RunStats:
    stats = RunStats()
    for name, value in values.items():
        setattr(stats, name, value)
    return stats


def rendered(stats: RunStats, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(RunDisplay(stats, console, "off").render())
    return console.export_text().splitlines()


def test_rates_are_of_the_last_seconds_only() -> None:
    rates, stats = Rates(), stats_of(work_started=0.0)
    for second in range(101):  # 10 rows a second for 50 seconds, then 2
        stats.rows_done = 10 * min(second, 50) + 2 * max(second - 50, 0)
        stats.completion_tokens = 4 * stats.rows_done
        rates.update(stats, float(second))
    assert rates.rows == pytest.approx(2.0)
    assert rates.tokens == pytest.approx(8.0)


def test_rates_leave_out_the_time_before_the_first_row() -> None:
    rates, stats = Rates(), stats_of()
    rates.update(stats, 0.0)
    stats.work_started = 100.0
    rates.update(stats, 100.0)
    stats.rows_done = 5
    rates.update(stats, 101.0)
    assert rates.rows == pytest.approx(5.0)


def test_rows_of_an_earlier_run_are_no_speed() -> None:
    rates, stats = Rates(), stats_of(work_started=0.0, rows_total=10_000, rows_earlier=5000)
    for second in range(3):  # of them 2000 a second pass, and 10 new ones are done
        stats.rows_resumed = 2000 * second
        stats.rows_done = 2010 * second
        rates.update(stats, float(second))
    assert rates.rows == pytest.approx(10.0)
    assert stats.rows_finished == 5020
    text = "\n".join(rendered(stats, 80))
    assert "5,020/10,000 50%" in text and "5,000 done before" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_bytes_are_shown_while_an_output_is_put(width: int) -> None:
    stats = stats_of(stage="putting s3://bucket/out", rows_total=10, transfer=Transfer(8_000_000))
    assert stats.transfer is not None
    stats.transfer.add(2_000_000)
    lines = rendered(stats, width)
    assert all(len(line) <= width for line in lines)
    assert "2.0/8.0 MB 25%" in lines[0] or width < 40


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_display_keeps_to_three_lines_of_any_width(width: int) -> None:
    stats = stats_of(
        stage="answering",
        rows_total=2_000_000,
        rows_done=1_500_000,
        images_done=1_499_000,
        completion_tokens=90_000_000,
        work_started=0.0,
    )
    stats.errors.update({"image_token_mismatch": 700, "image_unreadable": 300})
    lines = rendered(stats, width)
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert "1,500,000/2,000,000 75%" in lines[0] or width < 40
    if width >= 80:
        assert "1,000 errors: image_token_mismatch 700, image_unreadable 300" in lines[2]


def test_an_unknown_total_has_no_share_and_no_end() -> None:
    text = "\n".join(rendered(stats_of(rows_done=12, work_started=0.0), 80))
    assert "12 rows" in text
    assert "%" not in text and "ETA" not in text


def test_names_from_outside_cannot_steer_the_terminal() -> None:
    stats = stats_of(rows_done=1, finished=1.0)
    stats.errors["image_missing"] = 1
    stats.error_examples["image_missing"] = ErrorExample(0, "a", "no file at \x1b[2Jx.png")
    console = Console(file=io.StringIO(), width=80, record=True)
    print_run_summary(stats, console, "out\x1b[2J.parquet")
    text = console.export_text(clear=False)
    assert "\x1b" not in text
    assert "no file at \\x1b[2Jx.png" in text


@pytest.mark.parametrize(
    ("terminal", "options", "mode"),
    [
        (True, {}, "live"),
        (False, {}, "lines"),
        (True, {"log_format": "json"}, "lines"),
        (True, {"progress": False}, "off"),
        (False, {"quiet": True}, "off"),
    ],
)
def test_display_mode(terminal: bool, options: dict[str, object], mode: str) -> None:
    console = Console(force_terminal=terminal, _environ={"TERM": "xterm"})
    settings = {"progress": True, "quiet": False, "log_format": "text", "data_on_stdout": False}
    assert display_mode(console, **{**settings, **options}) == mode  # type: ignore[arg-type]


def test_lines_are_logged_while_the_block_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logged = threading.Event()
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.01)
    stats = stats_of(stage="answering", rows_total=10, rows_done=4, work_started=0.0)
    stats.errors["image_missing"] = 1
    with caplog.at_level("INFO", logger="vlmbatch"):

        def noted(record: logging.LogRecord) -> bool:
            logged.set()
            return True

        caplog.handler.addFilter(noted)
        with RunDisplay(stats, Console(), "lines"):
            assert logged.wait(10)
    assert caplog.records[0].getMessage().startswith("answering: 4/10 40%, ")
    assert caplog.records[0].getMessage().endswith(", errors: 1")
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def on_terminal(folder: Path, *arguments: str, **variables: str) -> str:
    """What the command prints on a terminal of 80 columns as its standard error."""
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(FAKE_JOB), *arguments],
        cwd=folder,
        env=environment(TERM="xterm-256color", COLUMNS="80", **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # the last writer has closed the terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(reader)
    stdout, _ = process.communicate(timeout=30)
    assert stdout == b""
    return shown.decode()


RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet")


def test_on_a_terminal_the_display_lives_and_goes(tmp_path: Path) -> None:
    shown = on_terminal(tmp_path, "live", *RUN)
    assert re.search(r"\d+/100 +\d+%", shown)
    assert "rows/s" in shown and "━" in shown
    assert "\x1b[?25l" in shown and shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "88 ok, 12 errors" in shown
    assert COLOUR.search(shown)


def test_no_color_no_progress_and_quiet_are_respected(tmp_path: Path) -> None:
    plain = on_terminal(tmp_path, "live", *RUN, NO_COLOR="1")
    assert "rows/s" in plain and not COLOUR.search(plain)
    still = on_terminal(tmp_path, "live", *RUN, "--no-progress")
    assert "━" not in still and "88 ok, 12 errors" in still
    assert on_terminal(tmp_path, "live", *RUN, "-q") == ""
