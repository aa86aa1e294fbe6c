"""A decoder that crashes, hangs or devours memory costs its own row; lost workers are replaced."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment
from real_command import run, start
from worker_processes import HOSTILE_DECODERS, PHOTOS, PROCESSOR, wait_until, worker_pids

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, OutputError, RowError, VlmbatchError
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.types import ImageRef

ROOT = Path(__file__).parents[2]
LIMITS = ImageLimits(max_pixels=1_000_000, max_bytes=2**20)
GOOD = [ImageRef(str(path)) for path in sorted(PHOTOS.glob("*.jpg"))]
TIMEOUT_S = 0.75
HOSTILE_PATH = os.pathsep.join([str(HOSTILE_DECODERS), *sys.path])  # for a program of its own


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageWorkers]:
    monkeypatch.syspath_prepend(HOSTILE_DECODERS)
    pool = ImageWorkers(LIMITS, PROCESSOR, 2, TIMEOUT_S, slots=16, recent_bytes=0)
    yield pool
    pool.close()


def error_of(workers: ImageWorkers, ref: ImageRef) -> RowError:
    error = workers.submit(ref).exception()
    assert isinstance(error, RowError), error
    return error


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("a.crash", ErrorCode.IMAGE_UNREADABLE, "a.crash: the decoder crashed (signal 11)"),
        (
            "a.bug",
            ErrorCode.IMAGE_UNREADABLE,
            "a.bug: the decoder crashed (exit status 1: KeyError: 'planted in a decoder')",
        ),
    ],
)
def test_a_crash_costs_its_own_row(
    workers: ImageWorkers, name: str, code: ErrorCode, message: str
) -> None:
    futures = [workers.submit(ref) for ref in (*GOOD, ImageRef(name), *GOOD)]
    bad = futures.pop(len(GOOD)).exception()
    assert isinstance(bad, RowError)
    assert (bad.code, bad.message) == (code, message)
    assert [future.exception() for future in futures] == [None] * len(futures)


def test_a_crash_is_not_retried_and_the_worker_is_replaced(workers: ImageWorkers) -> None:
    for index in range(5):
        error_of(workers, ImageRef(f"{index}.crash"))
    assert workers.submit(GOOD[0]).result()
    wait_until(lambda: len(worker_pids(os.getpid())) == 2)


def test_an_image_that_hangs_is_given_up(workers: ImageWorkers) -> None:
    workers.submit(GOOD[0]).result()
    started = time.monotonic()
    futures = [workers.submit(ref) for ref in (ImageRef("a.hang"), *GOOD)]
    error = futures.pop(0).exception()
    assert time.monotonic() - started >= TIMEOUT_S
    assert isinstance(error, RowError)
    assert error.code == ErrorCode.IMAGE_TIMEOUT
    assert error.message.startswith("a.hang: not decoded after 0.")
    assert error.message.endswith("0.75 s are allowed (--image-timeout)")
    assert [future.exception() for future in futures] == [None] * len(futures)


def test_what_is_no_reply_costs_its_own_row(workers: ImageWorkers) -> None:
    futures = [workers.submit(ImageRef(f"{number}.liar")) for number in range(4)]
    for number, future in enumerate(futures):
        error = future.exception(60)
        assert isinstance(error, RowError)
        told = f"{number}.liar: the decoder crashed (it sent what is no reply)"
        assert (error.code, error.message) == (ErrorCode.IMAGE_UNREADABLE, told)
    assert workers.submit(GOOD[0]).result()


def test_a_reply_that_comes_byte_by_byte_is_given_up(workers: ImageWorkers) -> None:
    assert error_of(workers, ImageRef("a.drip")).code == ErrorCode.IMAGE_TIMEOUT


@pytest.mark.skipif(sys.platform != "linux", reason="address space is not limited elsewhere")
def test_memory_of_one_image_is_bounded(workers: ImageWorkers) -> None:
    workers.submit(GOOD[0]).result()
    wait_until(lambda: len(worker_pids(os.getpid())) == 2)
    before = worker_pids(os.getpid())
    error = error_of(workers, ImageRef("a.greedy"))
    assert error.code == ErrorCode.IMAGE_TOO_LARGE
    assert "2080 MiB" in error.message
    assert workers.submit(GOOD[0]).result()
    assert worker_pids(os.getpid()) == before


def test_an_image_is_not_blamed_for_a_worker_that_died_idle(workers: ImageWorkers) -> None:
    workers.submit(GOOD[0]).result()
    wait_until(lambda: len(worker_pids(os.getpid())) == 2)
    killed = worker_pids(os.getpid())
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    futures = [workers.submit(ref) for ref in GOOD]
    assert [future.exception() for future in futures] == [None] * len(GOOD)
    wait_until(lambda: len(worker_pids(os.getpid())) == 2)
    assert worker_pids(os.getpid()).isdisjoint(killed)


def test_workers_leave_signals_to_their_parent() -> None:
    workers = ImageWorkers(LIMITS, PROCESSOR, 1, TIMEOUT_S, slots=1, recent_bytes=0)
    try:
        workers.submit(GOOD[0]).result()
        (pid,) = worker_pids(os.getpid())
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
        workers.submit(GOOD[0]).result()
        assert worker_pids(os.getpid()) == {pid}
    finally:
        workers.close()


PARENT = """
import sys, time
from worker_processes import PROCESSOR
from vlmbatch.config import ImageLimits
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.types import ImageRef
workers = ImageWorkers(ImageLimits(), PROCESSOR, 2, 0.5, 4)
workers.submit(ImageRef(sys.argv[1])).result()
workers.submit(ImageRef("a.hang"))
print("hanging", flush=True)
time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    """One that waits for images, and one that hangs in one."""
    command = [sys.executable, "-c", PARENT, str(PHOTOS / "coffee.jpg")]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment(PYTHONPATH=HOSTILE_PATH)
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"hanging\n"
    wait_until(lambda: len(worker_pids(parent.pid)) == 2)
    pids = worker_pids(parent.pid)
    for pid in (parent.pid, *pids):  # nothing in memory has a name that could be left behind
        assert "/dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


DIES_AT_START = 'echo launched >> "$LOG"; echo "no module named planted" >&2; exit 3'
DIES_WHEN_READY = """
echo launched >> "$LOG"
exec {python} -c '
import socket, sys
from vlmbatch.images.loading.protocol import receive, send
connection = socket.socket(fileno=int(sys.argv[-2]))
receive(connection)
send(connection, dict(ready=1))
sys.exit("no module named planted")
' "$@"
"""


@pytest.mark.parametrize("script", [DIES_AT_START, DIES_WHEN_READY])
def test_workers_that_keep_dying_end_the_run(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, log = tmp_path / "python", tmp_path / "log"
    program.write_text("#!/bin/sh\n" + script.replace("{python}", sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setattr(sys, "executable", str(program))
    workers = ImageWorkers(LIMITS, PROCESSOR, 2, TIMEOUT_S, slots=4)
    try:
        failure = workers.submit(GOOD[0]).exception()
        assert isinstance(failure, VlmbatchError)
        assert "6 ended one after another" in str(failure)
        assert "no module named planted" in str(failure)
        assert "--image-workers 0" in str(failure)
        assert log.read_text().count("launched") <= 8
        with pytest.raises(VlmbatchError, match="no module named planted"):
            workers.submit(GOOD[1])
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("os.ftruncate", errno.EFBIG),
        ("os.memfd_create", errno.EMFILE),
        ("mmap.mmap", errno.ENOMEM),
        ("socket.socketpair", errno.ENFILE),
        ("subprocess.Popen", errno.EAGAIN),
    ],
)
def test_what_the_system_is_short_of_is_no_bug(
    place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is set, such as ``ulimit -f``, or a machine that is full."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(place, refuse)
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    workers = ImageWorkers(LIMITS, PROCESSOR, 1, TIMEOUT_S, slots=1)
    try:
        with pytest.raises(OutputError, match=os.strerror(number)):
            workers.submit(GOOD[0]).result(timeout=30)
    finally:
        workers.close()
    assert {path.name for path in Path("/proc/self/fd").iterdir()} <= before


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(
        json.dumps({"prompt": "<image> What?", "image": str(PHOTOS / "coffee.jpg")})
    )
    command = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable, "-m", "vlmbatch"]
    options = ["-m", str(ROOT / "samples/tiny-llava"), "--decode-images", "--image-workers", "1"]
    done = subprocess.run(
        [*command, "validate", str(manifest), *options],
        # Python would keep the first 4 KB of modules that it compiles, for all that come after.
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 74, done.stderr
    assert "File too large" in done.stderr


WITHOUT_STREAMS = """
import os, sys
from worker_processes import PROCESSOR
from vlmbatch.config import ImageLimits
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.types import ImageRef
for number in range(3):
    os.close(number)
workers = ImageWorkers(ImageLimits(), PROCESSOR, 1, 30.0, 4)
workers.submit(ImageRef(sys.argv[1])).result()
workers.close()
os._exit(7)
"""


def test_in_a_program_that_has_closed_its_streams() -> None:
    """As daemons do: descriptors 0 to 2 are then those of files that are opened next."""
    command = [sys.executable, "-c", WITHOUT_STREAMS, str(PHOTOS / "coffee.jpg")]
    done = subprocess.run(command, env=environment(PYTHONPATH=HOSTILE_PATH), timeout=60)
    assert done.returncode == 7


def test_a_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    workers = ImageWorkers(LIMITS, PROCESSOR, 1, TIMEOUT_S, slots=1)
    try:
        with pytest.raises(VlmbatchError, match="/nowhere/python: No such file"):
            workers.submit(GOOD[0]).result()
    finally:
        workers.close()


def test_the_command_line_survives_poison_images(tmp_path: Path) -> None:
    images = ["a.crash", str(PHOTOS / "coffee.jpg"), "a.hang", "a.bug", str(PHOTOS / "chelsea.jpg")]
    manifest = tmp_path / "manifest.jsonl"
    prompt = "USER: <image>\nWhat is this? ASSISTANT:"
    manifest.write_text("".join(json.dumps({"prompt": prompt, "image": i}) + "\n" for i in images))
    command = ["run", manifest, "-o", "-", "-q", "-m", ROOT / "samples/tiny-llava"]
    options = ["--max-tokens", 2, "--image-workers", 2, "--image-timeout", 1]
    done = run(*command, *options, variables={"PYTHONPATH": HOSTILE_PATH})
    assert (done.returncode, done.stderr) == (1, "")
    codes = [json.loads(line)["error_code"] for line in done.stdout.splitlines()]
    unreadable = ErrorCode.IMAGE_UNREADABLE
    assert codes == [unreadable, None, ErrorCode.IMAGE_TIMEOUT, unreadable, None]


def test_an_interrupted_run_does_not_wait_for_an_image_that_hangs(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"prompt": "USER: <image>\\nWhat? ASSISTANT:", "image": "a.hang"}\n')
    command = ["run", manifest, "-o", "-", "-q", "-m", ROOT / "samples/tiny-llava"]
    job = start(*command, "--image-timeout", 300, variables={"PYTHONPATH": HOSTILE_PATH})
    wait_until(lambda: worker_pids(job.pid) != set())
    pids = worker_pids(job.pid)
    job.send_signal(signal.SIGINT)
    assert job.wait() == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_validate_decodes_in_workers_too(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    images = ["a.crash", str(PHOTOS / "coffee.jpg"), "a.hang"]
    rows = [{"prompt": "<image> What?", "image": image} for image in images]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["validate", manifest, "--decode-images", "-m", ROOT / "samples/tiny-llava"]
    options = ["--image-timeout", 0.5, "--errors", "-", "--image-workers", 2, "-q"]
    done = run(*command, *options, variables={"PYTHONPATH": HOSTILE_PATH})
    assert done.returncode == 1, done.stderr
    errors = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(error["row_index"], error["error_code"]) for error in errors] == [
        (0, "image_unreadable"),
        (2, "image_timeout"),
    ]
