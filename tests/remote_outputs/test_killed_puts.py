"""SIGKILL while an output is put, then the same command: all of it is there, nothing is answered
again."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from fast_command import Command, FastCommands
from model_folder import make_model_folder
from object_server import access
from resumable_runs import WITH_ERRORS, write_manifest
from s3_server import Proxy, S3Server

from vlmbatch.durable.crash_points import REMOTE_CRASH_POINTS

NUM_ROWS = 40


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("put")
    model = make_model_folder(folder / "model")
    manifest = write_manifest(folder / "manifest.jsonl", NUM_ROWS)
    return ["run", manifest, "-m", model, "--image-workers", 0, "--max-tokens", 8]


def finish(command: Command) -> None:
    assert command.wait() == WITH_ERRORS, command.stderr
    assert command.computed == []
    assert f"{NUM_ROWS} done by an earlier run" in command.stderr


def test_a_folder(
    commands: FastCommands, arguments: list[object], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    where = ["-o", f"s3://{bucket}/out/", "--shard-rows", 15, "--work-dir", tmp_path]
    how: dict[str, Any] = {"variables": s3.variables}
    computed: list[int] = []
    for point in REMOTE_CRASH_POINTS:
        killed = commands.start(*arguments, *where, crash_at=point, **how)
        assert killed.wait() == -signal.SIGKILL, killed.stderr
        computed += killed.computed
    assert len(set(computed)) == len(computed) > 0
    finish(commands.start(*arguments, *where, **how))
    shards = {f"out/part-00000{number}.parquet" for number in range(3)}
    assert shards < s3.keys(bucket).keys()
    (local,) = tmp_path.glob("*/out")
    for key in shards:
        assert s3.read(bucket, key) == (local / Path(key).name).read_bytes()


def test_a_file_whose_put_hangs(
    commands: FastCommands, arguments: list[object], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """The connection stalls within the file: until all of it is there nobody sees anything."""
    held = threading.Event()

    def hold(data: bytes) -> None:
        if data.startswith(b"PUT /" + bucket.encode() + b"/out.parquet"):
            held.set()
            threading.Event().wait(60)

    proxy = Proxy(s3.port, hold)
    where = ["-o", f"s3://{bucket}/out.parquet", "--work-dir", tmp_path]
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        held.clear()
        command = commands.start(*arguments, *where, variables=access(proxy.url))
        command.wait_until(held.is_set)
        command.send_signal(number)
        assert command.wait(20) == status, command.stderr
        assert "out.parquet" not in s3.keys(bucket)
    proxy.close()
    finish(commands.start(*arguments, *where, variables=s3.variables))
    (local,) = tmp_path.glob("*/out.parquet")
    assert s3.read(bucket, "out.parquet") == local.read_bytes()


def test_a_connection_that_is_cut_off(
    commands: FastCommands, arguments: list[object], s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Once, in the middle of what is sent: it is sent again, by the same command."""
    cut: list[bytes] = []

    def cut_once(data: bytes) -> None:
        if data.startswith(b"PUT /" + bucket.encode() + b"/out.parquet") and not cut:
            cut.append(data)
            raise ConnectionResetError

    proxy = Proxy(s3.port, cut_once)
    where = ["-o", f"s3://{bucket}/out.parquet", "--work-dir", tmp_path]
    command = commands.run(*arguments, *where, variables=access(proxy.url))
    proxy.close()
    assert command.wait() == WITH_ERRORS, command.stderr
    assert cut and "out.parquet" in s3.keys(bucket)
