"""The command line over a job that does what its first argument says, in place of a model.

    python fake_job.py BEHAVIOUR run manifest.jsonl ...

Run as a program of its own, so that signals, pipes, terminals and exit statuses are real.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import marshal
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

from vlmbatch.config import JobConfig, ManifestConfig, SessionConfig
from vlmbatch.errors import ErrorCode, ManifestError, OutputError, RowError
from vlmbatch.stages.stopping import RunStoppedError
from vlmbatch.stats import RunStats
from vlmbatch.types import ErrorExample, Result, Row

ERROR = RowError(ErrorCode.IMAGE_MISSING, "no file at images/7.png")


def rows(stats: RunStats, num_rows: int, errors: int = 0, seconds: float = 0.0) -> None:
    stats.stage, stats.rows_total = "answering", num_rows
    stats.work_started = time.monotonic()
    for index in range(num_rows):
        row = Row(index, f"row-{index}", index + 1, "m.jsonl")
        if index < errors:
            stats.count(Result.from_error(row, ERROR), 1)
        else:
            stats.count(Result(index, row.id, "a", "stop", 600, 576, 4), 1)
        time.sleep(seconds)
    stats.finished = time.monotonic()


def answered(config: JobConfig, stats: RunStats) -> None:
    rows(stats, 3)


def with_errors(config: JobConfig, stats: RunStats) -> None:
    rows(stats, 3, errors=1)


def refused(config: JobConfig, stats: RunStats) -> None:
    raise ManifestError(f"{config.manifest.source}:1: not a JSON object")


def disk_full(config: JobConfig, stats: RunStats) -> None:
    raise OutputError(f"cannot write {config.destination}: No space left on device")


def no_files(config: JobConfig, stats: RunStats) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.txt")


def bug(config: JobConfig, stats: RunStats) -> None:
    raise KeyError("planted")


def end_of_file(config: JobConfig, stats: RunStats) -> None:
    raise EOFError("planted")


def cut_module(config: JobConfig, stats: RunStats) -> None:
    marshal.loads(marshal.dumps(compile("0", "a.py", "exec"))[:-9])


def sleep(seconds: float) -> None:
    """In short sleeps: one that begins as a signal comes is not ended by it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


def slow(config: JobConfig, stats: RunStats) -> None:
    """Says on standard output that it runs, then waits for a signal."""
    stats.rows_done = 2
    print("running", flush=True)
    sleep(60)


def confused(config: JobConfig, stats: RunStats) -> None:
    """As ``slow``, in native code that makes an error of its own of whatever is raised in it."""
    try:
        slow(config, stats)
    except BaseException as error:
        raise ValueError("could not determine the shape") from error


def stopped(config: JobConfig, stats: RunStats) -> None:
    stats.rows_earlier = 100
    rows(stats, 50, errors=1)
    stats.rows_total = 300
    raise RunStoppedError("stopped by SIGTERM", 143)


def complete(config: JobConfig, stats: RunStats) -> None:
    stats.count_earlier(3, {ERROR.code: 1}, {ERROR.code: ErrorExample(0, "0", ERROR.message)})


def live(config: JobConfig, stats: RunStats) -> None:
    rows(stats, 100, errors=12, seconds=0.01)


def talkative(config: JobConfig, stats: RunStats) -> None:
    rows(stats, 1)
    for _ in range(100_000):
        sys.stdout.write('{"text": "an answer that nobody waits for"}\n')


def show_config(config: JobConfig, stats: RunStats) -> None:
    print(json.dumps(dataclasses.asdict(config), default=str))


def validate(
    behaviour: str,
    session: SessionConfig,
    manifest: ManifestConfig,
    stats: RunStats,
    *,
    decode_images: bool = False,
) -> Iterator[tuple[Row, RowError | None]]:
    stats.rows_total = 3
    for index in range(3):
        error = ERROR if index == 1 and behaviour == "with_errors" else None
        yield Row(index, f"row-{index}", index + 1, "m.jsonl"), error


def put_in_place(behaviour: str) -> None:
    """Let this be the job of the commands, which import it when they need it."""
    job: Callable[[JobConfig, RunStats], None] = globals()[behaviour]
    for name, function in (("run", job), ("validate", partial(validate, behaviour))):
        module = ModuleType(f"vlmbatch.jobs.{name}")
        module.__dict__[name] = function
        sys.modules[module.__name__] = module


if __name__ == "__main__":
    put_in_place(sys.argv.pop(1))

    from vlmbatch.cli import main

    sys.exit(main())
