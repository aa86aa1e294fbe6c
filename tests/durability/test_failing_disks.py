"""The file system refuses, at any call: the message says what and why, and no safe row is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from resumable_runs import WITH_ERRORS, digests

ADVICE = {
    errno.ENOSPC: "Free space",
    errno.EDQUOT: "Free space",
    errno.EFBIG: "ulimit -f",
    errno.EIO: "Check the disk",
    errno.EROFS: "Make its folder writable",
    errno.EACCES: "Make its folder writable",
    errno.ESTALE: "mounted",
}


def refused(command, folder: Path, number: int) -> str:
    """The one line of an error that the file system has made."""
    assert command.wait() == 74, command.stderr
    lines = [line for line in command.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in command.stderr, command.stderr
    assert str(folder) in lines[0] and os.strerror(number) in lines[0], lines[0]
    assert ADVICE[number] in lines[0] and "run again" in lines[0]
    return lines[0]


CALLS = ("make_folder", "open", "write", "fsync", "fsync_folder", "replace", "unlink")


@pytest.mark.parametrize("most", [3, pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.parametrize("shard_rows", [None, 64])
def test_at_calls_of_every_kind(new_run, expected, shard_rows, most):
    """Each run meets the failure at a later call than the one before, until one meets none."""
    rng = random.Random(shard_rows)
    for kind in CALLS:
        run = new_run(shard_rows=shard_rows)
        at = failures = 0
        while failures < most:
            number = rng.choice([errno.ENOSPC, errno.EIO])
            command = run.start(fault=(at, number, kind))
            if command.wait() == WITH_ERRORS:
                break
            refused(command, run.folder, number)
            assert not run.acknowledged.intersection(command.computed)
            run.acknowledged.update(command.acknowledged)
            run.committed()
            failures += 1
            at += rng.randrange(1, 50 if kind == "write" else 5 if kind == "fsync" else 2)
        run.finish(expected)
        assert failures or kind == "unlink"


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE])
def test_advice(new_run, expected, number):
    run = new_run()
    for at in (0, 2, 20):
        refused(run.start(fault=(at, number)), run.folder, number)
    run.finish(expected)


def test_short_writes(new_run, expected):
    for at in range(0, 900, 150):
        run = new_run()
        assert run.attempt(fault=(at, None, "write")) == WITH_ERRORS
        run.check_finished(expected)


@pytest.mark.parametrize("shard_rows", [None, 64])
def test_a_full_disk(new_run, expected, small_disk, shard_rows):
    """Nothing free, then a page more at a time: sooner or later it is enough."""
    run = new_run(shard_rows=shard_rows, folder=small_disk)
    ballast = small_disk / "ballast"
    failures = 0
    for free in range(100):
        size = shutil.disk_usage(small_disk).free - free * os.sysconf("SC_PAGE_SIZE")
        ballast.write_bytes(b"x" * size)
        command = run.start()
        status = command.wait()
        ballast.unlink()
        assert not run.acknowledged.intersection(command.computed)
        run.acknowledged.update(command.acknowledged)
        run.committed()
        if status == WITH_ERRORS:
            break
        refused(command, small_disk, errno.ENOSPC)
        failures += 1
    assert failures > 3
    run.finish(expected)


def test_a_read_only_disk(new_run, expected, small_disk):
    run = new_run(folder=small_disk)
    assert run.attempt(crash_at="journal.acknowledged:3") != WITH_ERRORS
    before = digests(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = refused(command := run.start(), small_disk, errno.EROFS)
    assert not command.has("loading"), message
    assert digests(small_disk) == before
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    run.finish(expected)


def test_a_folder_that_may_not_be_written(new_run, expected, manifest, model, open_folder, user):
    shutil.copytree(model, open_folder / "model")
    shutil.copy(manifest, open_folder / "manifest.jsonl")
    (open_folder / "run").mkdir()
    run = new_run(open_folder / "manifest.jsonl", open_folder / "model", open_folder / "run")
    refused(command := run.start(user=user), run.folder, errno.EACCES)
    assert not command.has("loading") and list(run.folder.iterdir()) == []
    assert run.attempt(crash_at="journal.acknowledged:3") != WITH_ERRORS
    refused(run.start(user=user), run.folder, errno.EACCES)
    run.finish(expected)


def test_a_manifest_that_may_not_be_read(new_run, model, manifest, open_folder, user):
    """Nor the folder that it is in."""
    shutil.copytree(model, open_folder / "model")
    (open_folder / "run").mkdir(mode=0o777)
    (open_folder / "run").chmod(0o777)
    run = new_run(manifest, open_folder / "model", open_folder / "run")
    command = run.start(user=user)
    assert command.wait() == 2, command.stderr
    assert str(manifest) in command.stderr and "Permission denied" in command.stderr
    assert list(run.folder.iterdir()) == []


@pytest.mark.parametrize("shard_rows", [None, 64])
@pytest.mark.parametrize("what", ["all", "work folder", "output"])
def test_a_folder_removed_under_it(new_run, expected, what, shard_rows):
    run = new_run(shard_rows=shard_rows, step_seconds=0.005)
    command = run.start()
    command.wait_until(lambda: len(command.acknowledged) >= 80)
    if shard_rows is not None:  # rows end out of order: 80 may not hold the whole first 64
        command.wait_until(lambda: any(run.output.glob("part-*")))
    work = run.folder / f"{run.output.name}.vlmbatch"
    removed = {"all": run.folder, "work folder": work, "output": run.output}[what]
    shutil.rmtree(removed, ignore_errors=True)
    if what == "output" and shard_rows is None:  # it does not yet exist
        assert command.wait() == WITH_ERRORS
    else:
        assert command.wait() == 74, command.stderr
        assert "Check that its folder exists" in command.stderr and str(removed) in command.stderr
    run.folder.mkdir(exist_ok=True)
    if what == "work folder" and shard_rows is not None:  # whose shards these are is not known
        command = run.start()
        assert command.wait() == 2 and "--overwrite" in command.stderr
        run.committed()
        shutil.rmtree(run.output)
    run.finish(expected)
