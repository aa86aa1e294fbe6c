"""``vlmbatch run`` as a process of its own, timed from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmbatch.config import JobConfig
from vlmbatch.config.option import opt_fields
from vlmbatch.errors import VlmbatchError


@dataclass(frozen=True, slots=True)
class RunProcess:
    """What a process took, from its start to its end.

    ``answering``: of its ``seconds``, those from opening the manifest to the durable output, with
    the engine loaded. ``rows_per_second`` are over these.
    """

    seconds: float
    answering: float
    rows_per_second: float


def time_run(config: JobConfig, output: Path) -> RunProcess:
    """Run ``config`` in a new process that writes ``output``, a Parquet file.

    Raises:
        VlmbatchError: the process failed; its messages are on standard error.
    """
    summary = output.with_suffix(".json")
    command = [*_command(config), "--output", str(output), "--summary-json", str(summary)]
    started = time.perf_counter()
    status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    seconds = time.perf_counter() - started
    if status != 0:
        raise _failure(command, status)
    figures = json.loads(summary.read_bytes())
    return RunProcess(seconds, figures["processing_seconds"], figures["rows_per_second"])


def seconds_to_first_row(config: JobConfig) -> float:
    """Run ``config`` in a new process; seconds until a row is written to standard output.

    Raises:
        VlmbatchError: the process failed; its messages are on standard error.
    """
    command = [*_command(config), "--output", "-"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.stdout.read()
    if process.returncode != 0 or not first:
        raise _failure(command, process.returncode)
    return seconds


def _failure(command: list[str], status: int) -> VlmbatchError:
    return VlmbatchError(f"`{' '.join(command)}` exited with {status}")


def _command(config: JobConfig) -> list[str]:
    session, engine = config.session, config.session.engine
    command = [sys.executable, "-m", "vlmbatch", "run", config.manifest.source, "--quiet"]
    command += ["--model", session.model, "--max-tokens", str(config.sampling.max_tokens)]
    command += ["--ignore-eos", *_flags(engine), *_flags(session.image_loading)]
    if engine.gpus is None and engine.device != "cpu" and torch.cuda.is_available():
        command += ["--gpus", str(engine.tensor_parallel)]  # of which a run takes all
    return command


def _flags(config: Any) -> Iterator[str]:
    """The options of a configuration whose values are not their defaults, on a command line."""
    for item in opt_fields(type(config)):
        value = getattr(config, item.path[0])
        if value == item.default:
            continue
        if item.plain_kind is bool:
            yes, _, no = item.flag.partition("/")
            yield yes if value or item.opt.unsets else no
        else:
            yield from (item.flag, str(value))
