"""The options of stopping and going on: their values, and what contradicts what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config.units import parse_duration, parse_share
from vlmbatch.errors import ConfigError

RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5", 1.5),
        ("45s", 45),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        (" 2H ", 7200),
        ("0.5h", 1800),
    ],
)
def test_a_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2x", "h", "2h3", "-5", "1e3", "nan", "inf", "1 h", "2:00"])
def test_no_time(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_duration(text)
    assert f'2h or 1h30m, got "{text}"' in str(caught.value)


@given(
    days=st.integers(0, 30), hours=st.integers(0, 23), minutes=st.integers(0, 59), s=st.integers(0)
)
def test_a_time_is_the_sum_of_its_parts(days: int, hours: int, minutes: int, s: int) -> None:
    total = parse_duration(f"{days}d{hours}h{minutes}m{s}s")
    assert total == float(((days * 24 + hours) * 60 + minutes) * 60) + s


@pytest.mark.parametrize(
    ("text", "share"),
    [("5%", 0.05), ("0.05", 0.05), ("0", 0), ("100%", 1), ("1", 1), ("2.5 %", 0.025)],
)
def test_a_share(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "5", "101%", "-1%", "nan", "inf%", "5%%", "five"])
def test_no_share(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_share(text)
    assert f'such as 5% or 0.05, got "{text}"' in str(caught.value)


def shown_policy(job: Run, *arguments: str, **variables: str) -> dict[str, Any]:
    done = job("show_config", *RUN, *arguments, **variables)
    assert done.returncode in (0, 1), done.stderr
    policy: dict[str, Any] = json.loads(done.stdout)["policy"]
    return policy


def test_from_flags(job: Run) -> None:
    policy = shown_policy(
        job,
        *("--deadline", "2h", "--grace", "1m", "--max-error-rate", "5%"),
        "--retry-failed",
    )
    assert (policy["deadline_s"], policy["grace_s"], policy["max_error_rate"]) == (7200, 60, 0.05)
    assert policy["retry_failed"] and not policy["overwrite"]


def test_from_the_environment_and_a_file(job: Run, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('grace = 5\ndeadline = "45m"\nmax_error_rate = 0.1\n')
    policy = shown_policy(job, "--config", "job.toml", VLMBATCH_GRACE="7s")
    assert (policy["deadline_s"], policy["grace_s"], policy["max_error_rate"]) == (2700, 7, 0.1)


def test_resume_is_the_default_and_undoes_overwrite(job: Run, tmp_path: Path) -> None:
    policy = shown_policy(job)
    assert (policy["overwrite"], policy["deadline_s"], policy["grace_s"]) == (False, None, 20)
    (tmp_path / "job.toml").write_text("overwrite = true\n")
    assert shown_policy(job, "--config", "job.toml")["overwrite"]
    assert not shown_policy(job, "--config", "job.toml", "--resume")["overwrite"]


@pytest.mark.parametrize(
    ("output", "options", "shard_rows"),
    [
        ("out.parquet", (), None),
        ("out.parquet", ("--shard-rows", "7"), 7),
        ("folder", (), 100_000),
        ("folder.v2/", (), 100_000),
        ("out.parquet/", ("--shard-rows", "7"), 7),
    ],
)
def test_a_file_or_a_folder_of_shards(
    job: Run, output: str, options: tuple[str, ...], shard_rows: int | None
) -> None:
    done = job("show_config", "run", "m.jsonl", "-m", "x", "-o", output, *options)
    destination = json.loads(done.stdout)["destination"]
    assert destination["path"] == output.rstrip("/")
    assert destination.get("shard_rows") == shard_rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*RUN, "--overwrite", "--retry-failed"], "--overwrite and --retry-failed contradict each"),
        ([*RUN, "--overwrite", "--incremental"], "--overwrite and --incremental contradict each"),
        ([*RUN, "--retry-failed", "--incremental"], "contradict each other: choose one"),
        (["run", "-", "-m", "x", "--retry-failed"], "--retry-failed needs an output file"),
        (["run", "-", "-m", "x", "--incremental"], "--incremental needs an output file"),
        (["run", "-", "-m", "x", "--shard-rows", "5"], "--shard-rows needs a folder"),
        ([*RUN, "--shard-rows", "0"], "'--shard-rows': must be at least 1, got 0"),
        ([*RUN, "--deadline", "2x"], "'--deadline': must be a time such as 90, 45s, 15m, 2h"),
        ([*RUN, "--grace", "soon"], "'--grace': must be a time"),
        ([*RUN, "--max-error-rate", "5"], "'--max-error-rate': must be a share such as 5%"),
    ],
)
def test_refused(job: Run, arguments: list[str], message: str) -> None:
    done = job("answered", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr
