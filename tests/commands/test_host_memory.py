"""--host-memory: what is a size, and what reaches the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run

from vlmbatch.config.units import parse_size
from vlmbatch.errors import ConfigError

RUN = ("run", "m.jsonl", "-m", "x", "-o", "out.parquet")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1073741824", 2**30),
        ("4GiB", 4 * 2**30),
        ("4g", 4 * 2**30),
        ("512 MiB", 2**29),
        ("0.5G", 2**29),
        ("64K", 2**16),
        ("2TiB", 2**41),
        ("4GB", 4 * 10**9),
        ("100B", 100),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "4X", "1e9", "4iB", "nan", "4 G B", "4GiBs"])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert f'such as 4GiB or 512MiB, got "{text}"' in str(caught.value)


@pytest.mark.parametrize("line", ['host_memory = "2GiB"', f"host_memory = {2**31}"])
def test_from_a_file(job: Run, tmp_path: Path, line: str) -> None:
    (tmp_path / "job.toml").write_text(line + "\n")
    done = job("show_config", *RUN, "--config", "job.toml")
    assert json.loads(done.stdout)["session"]["host_memory"] == 2**31


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("much", "'--host-memory': must be a size such as 4GiB or 512MiB, got \"much\""),
        ("1MiB", "must be at least 16777216 bytes (16MiB), got 1048576"),
    ],
)
def test_refusals(job: Run, size: str, message: str) -> None:
    done = job("show_config", *RUN, "--host-memory", size)
    assert done.returncode == 2 and message in " ".join(done.stderr.split())
