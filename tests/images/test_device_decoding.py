"""Plain JPEGs are decoded by a process of their own, in batches; a crash costs its own row."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_decoders import InvertingDecoder, LyingDecoder, cannot_be_opened, inverted
from encoding import encoded
from PIL import Image
from worker_processes import PHOTOS, PROCESSOR, wait_until, worker_pids

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.images.loading import device_feed, device_jobs
from vlmbatch.images.loading.device_feed import DeviceFeed
from vlmbatch.images.loading.device_jobs import DeviceJobs
from vlmbatch.images.loading.device_process import images_at_once
from vlmbatch.images.loading.job import Job
from vlmbatch.images.loading.loader import InProcessLoader
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.models.preprocessor_config import Normalization
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.types import ImageInput, ImageRef, PixelImage

LIMITS = ImageLimits(max_pixels=1_000_000, max_bytes=2**20)
TIMEOUT_S = 1.0
DEVICE = b"images.loading.device_worker"
Open = Callable[..., ImageWorkers]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sizes of the batches that the device was given."""
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def open_pool(log: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_one(**options: Any) -> ImageWorkers:
            arguments: dict[str, Any] = {
                "num_workers": 1,
                "timeout_s": TIMEOUT_S,
                "slots": 64,
                "recent_bytes": 0,
                "decoder": "gpu",
                "open_device": partial(InvertingDecoder, log),
                **options,
            }
            wait = arguments.pop("wait", True)  # else images wait for the process, together
            pool = ImageWorkers(LIMITS, arguments.pop("processor", PROCESSOR), **arguments)
            stack.callback(pool.close)
            if wait:
                pool.wait_ready()
            return pool

        yield open_one


def jpeg(number: int = 0, comment: bytes = b"", **options: Any) -> bytes:
    with Image.open(PHOTOS / "coffee.jpg") as photo:
        picture = photo.convert("RGB").resize((90 + number, 70))
    return encoded(picture, "JPEG", comment=comment, **options)


def outcome(pool: ImageWorkers, ref: ImageRef) -> ImageInput | RowError:
    try:
        return pool.submit(ref).result(timeout=60)
    except RowError as error:
        return error


def is_inverted(image: ImageInput | RowError, data: bytes) -> bool:
    """Whether the device has decoded it, and not a worker."""
    assert isinstance(image, PixelImage), image
    ours = PROCESSOR.process(inverted(data))
    theirs = PROCESSOR.process(decode_image(ImageRef(data=data), LIMITS))
    assert image.content_hash in (ours.content_hash, theirs.content_hash)
    return image.content_hash == ours.content_hash


def batches(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_plain_jpegs_go_to_the_device_and_all_else_to_workers(
    open_pool: Open, tmp_path: Path
) -> None:
    pool = open_pool()
    (tmp_path / "a.jpg").write_bytes(jpeg())
    plain = [ImageRef(data=jpeg(1)), ImageRef(data=jpeg(exif=turned(6)))]
    for ref in plain:
        assert ref.data is not None
        assert is_inverted(outcome(pool, ref), ref.data)
    assert is_inverted(outcome(pool, ImageRef(str(tmp_path / "a.jpg"))), jpeg())
    others = [
        jpeg(progressive=True),
        jpeg(2, b"refuse, please"),
        jpeg(3, b"large, please"),
        encoded(Image.new("L", (9, 9))),
    ]
    for data in others:
        assert not is_inverted(outcome(pool, ImageRef(data=data)), data)


def test_what_is_wrong_with_an_image_is_said_as_ever(open_pool: Open, tmp_path: Path) -> None:
    pool, here = open_pool(), InProcessLoader(LIMITS, PROCESSOR)
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:900])
    os.mkfifo(tmp_path / "pipe.jpg")
    resolution = ImageResolution(max_pixels=1000)
    refs = [
        *(ImageRef(str(tmp_path / name)) for name in ("page.jpg", "cut.jpg", "pipe.jpg", "none")),
        ImageRef(data=jpeg()[:-2]),
        ImageRef(data=encoded(Image.new("RGB", (1200, 900)), "JPEG")),
        ImageRef(data=jpeg() + bytes(LIMITS.max_bytes)),
        ImageRef(data=jpeg(), resolution=resolution),
    ]
    for ref in refs:
        error = outcome(pool, ref)
        with pytest.raises(RowError) as expected:
            here.submit(ref).result()
        assert isinstance(error, RowError)
        assert (error.code, error.message) == (expected.value.code, expected.value.message)


def test_what_waits_is_decoded_together(open_pool: Open, log: Path) -> None:
    pool = open_pool(wait=False)
    files = [jpeg(number) for number in range(40)]
    futures = [pool.submit(ImageRef(data=data)) for data in files]
    images = [future.result(60) for future in futures]
    assert all(is_inverted(image, data) for image, data in zip(images, files, strict=True))
    assert sum(batches(log)) == 40
    assert 1 < max(batches(log)) <= 32


def test_what_comes_just_behind_an_image_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_jobs, "_LINGER_SECONDS", 60)
    lock = threading.Lock()
    waiting = DeviceJobs(lock)
    one, two = (Job((name, None, None, "", None), ImageRef(name)) for name in "ab")

    def add_another() -> None:
        with lock:  # which is free as the batch waits
            waiting.append(two)

    with lock:
        waiting.append(one)
        thread = threading.Thread(target=add_another)
        thread.start()
        assert waiting.next_batch(2, 0) == [one, two]
    thread.join()


def test_a_batch_has_only_so_many_pixels(open_pool: Open, log: Path) -> None:
    pool = open_pool(open_device=partial(InvertingDecoder, log, 3 * 90 * 70), wait=False)
    files = [jpeg(comment=b"%d" % number) for number in range(10)]
    futures = [pool.submit(ImageRef(data=data)) for data in (*files, jpeg(400))]
    images = [future.result(60) for future in futures]
    assert [is_inverted(image, data) for image, data in zip(images, files, strict=False)] == (
        [True] * 10
    )
    assert not is_inverted(images[10], jpeg(400))  # too large, alone
    assert sum(batches(log)) == 10
    assert max(batches(log)) == 3


def test_images_that_a_model_sees_large_come_in_smaller_batches() -> None:
    assert images_at_once(3 * 336 * 336) == 32
    assert images_at_once(50 * 2**20) == 10
    assert images_at_once(2**30) == 1


def test_images_of_any_size_and_a_row_of_its_own(open_pool: Open) -> None:
    ones = (1.0, 1.0, 1.0)
    processor = QwenImageProcessor(
        28, 784, 10**5, Image.Resampling.BICUBIC, Normalization(1 / 255, ones, ones)
    )
    pool = open_pool(processor=processor, wait=False)
    files = [jpeg(number, exif=turned(1 + number % 8)) for number in range(0, 320, 40)]
    refs = [ImageRef(data=data) for data in files]
    refs += [ImageRef(data=files[3], resolution=ImageResolution(max_pixels=5000))]
    for ref, future in zip(refs, [pool.submit(ref) for ref in refs], strict=True):
        image = future.result(60)
        assert isinstance(image, PixelImage)
        assert ref.data is not None
        expected = processor.at(ref.resolution).process(inverted(ref.data))
        np.testing.assert_array_equal(image.pixels, expected.pixels)
        assert (image.content_hash, image.grid) == (expected.content_hash, expected.grid)


@pytest.mark.parametrize(
    ("comment", "code", "message"),
    [
        (b"crash, please", ErrorCode.IMAGE_UNREADABLE, "the decoder crashed (signal 11)"),
        (b"hang, please", ErrorCode.IMAGE_TIMEOUT, "1 s are allowed (--image-timeout)"),
    ],
)
def test_what_brings_down_the_process_costs_its_own_row(
    open_pool: Open, log: Path, comment: bytes, code: ErrorCode, message: str
) -> None:
    pool = open_pool(wait=False)
    files = [jpeg(number) for number in range(6)]
    refs = [ImageRef(data=data) for data in files]
    refs.insert(3, ImageRef("poison", jpeg(9, comment)))
    futures = [pool.submit(ref) for ref in refs]
    error = futures.pop(3).exception(60)
    assert isinstance(error, RowError)
    assert error.code is code
    assert error.message.startswith("poison: ") and error.message.endswith(message)
    images = [future.result(60) for future in futures]
    assert all(is_inverted(image, data) for image, data in zip(images, files, strict=True))
    # The first batch is a small one; then one by one, to find out which it was.
    assert 1 < batches(log)[0] <= 4 and 1 in batches(log)


REPLY = '{"shape": [4, 4, 3], "grid": [1, 1, 1, 48], "identity": null, "content_hash": "00"}'
LIES = [
    '{"images": 3}',
    '{"images": [[0, null], [0, null]]}',
    '{"images": [[1, null]]}',
    '{"images": [[0, {}]]}',
    f'{{"images": [[0, {REPLY.replace("[4, 4, 3]", "[96, 64, 3]")}]]}}',  # of two slots
    f'{{"images": [[0, {REPLY.replace("48", "1e999")}]]}}',
]


def test_a_process_that_was_taken_over_costs_its_own_row(
    open_pool: Open, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_feed, "_CRASHES", len(LIES))
    pool = open_pool(open_device=partial(LyingDecoder, log))
    for number, lie in enumerate(LIES):
        error = outcome(pool, ImageRef("a", jpeg(number, f"lie: {lie}".encode())))
        assert isinstance(error, RowError), lie
        assert error.message == "a: the decoder crashed (it sent what is no reply)"
    assert isinstance(outcome(pool, ImageRef(data=jpeg())), PixelImage)


def test_a_process_that_does_nothing_but_talk_is_given_up(open_pool: Open, log: Path) -> None:
    pool = open_pool(open_device=partial(LyingDecoder, log), timeout_s=0.3)
    error = outcome(pool, ImageRef("a", jpeg(comment=b"talk, please")))
    assert isinstance(error, RowError)
    assert error.code is ErrorCode.IMAGE_TIMEOUT
    assert error.message.startswith("a: not decoded after 0.")


def test_what_is_decoded_before_a_crash_is_not_decoded_again(open_pool: Open, log: Path) -> None:
    pool = open_pool(open_device=partial(InvertingDecoder, log, 100 * 70), wait=False)
    files = [jpeg(0), jpeg(1), jpeg(2, b"hang, please")]
    *images, error = [pool.submit(ImageRef(data=data)) for data in files]
    assert all(
        is_inverted(image.result(60), data) for image, data in zip(images, files, strict=False)
    )
    assert isinstance(error.exception(60), RowError)
    assert batches(log) == [1, 1, 1]


def test_a_batch_may_take_as_long_as_its_images_do(open_pool: Open, log: Path) -> None:
    pool = open_pool(open_device=partial(InvertingDecoder, log, 100 * 70), wait=False)
    files = [jpeg(number, b"slowly, please") for number in range(3)]
    futures = [pool.submit(ImageRef(data=data)) for data in files]
    assert all(
        is_inverted(future.result(60), data) for future, data in zip(futures, files, strict=True)
    )
    assert batches(log) == [1, 1, 1]  # in half a second each, where one is allowed


def test_no_image_is_blamed_for_a_process_that_died_idle(open_pool: Open) -> None:
    pool = open_pool()
    (pid,) = worker_pids(os.getpid(), DEVICE)
    os.kill(pid, signal.SIGKILL)
    assert is_inverted(outcome(pool, ImageRef(data=jpeg())), jpeg())
    assert worker_pids(os.getpid(), DEVICE) not in ({pid}, set())


def test_after_too_many_crashes_workers_go_on(
    open_pool: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_feed, "_CRASHES", 1)
    pool = open_pool(slots=4)
    poison = [ImageRef(data=jpeg(number, b"crash, please")) for number in range(3)]
    with caplog.at_level(logging.WARNING, "vlmbatch"):
        errors = [outcome(pool, ref) for ref in poison]
        assert [isinstance(error, RowError) for error in errors] == [True, True, False]
        for number in range(6):  # more than there are slots
            assert not is_inverted(outcome(pool, ImageRef(data=jpeg(number))), jpeg(number))
    (warning,) = [each.getMessage() for each in caplog.records]
    assert "(2 crashes, 0 images decoded; the last time: embedded image: the decoder" in warning
    wait_until(lambda: worker_pids(os.getpid(), DEVICE) == set())


@pytest.mark.parametrize("crashes", [6, 7])
def test_crashes_that_are_rare_are_borne(crashes: int) -> None:
    feed = DeviceFeed.__new__(DeviceFeed)
    feed._losses, feed._decoded, feed._crashes = 0, 999, crashes
    assert feed._is_worth_it == (crashes == 6)


def test_a_device_that_cannot_be_opened_is_told_of_once(
    open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vlmbatch"):
        pool = open_pool(open_device=cannot_be_opened)
        assert not is_inverted(outcome(pool, ImageRef(data=jpeg())), jpeg())
    (warning,) = [each.getMessage() for each in caplog.records]
    assert "RuntimeError: no such device" in warning
    assert "as with --image-decoder exact" in warning


def test_closing_leaves_nothing_behind(open_pool: Open, caplog: pytest.LogCaptureFixture) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = descriptors(), threading.active_count()
    pool = open_pool(timeout_s=60.0)
    futures = [pool.submit(ImageRef(data=jpeg(number, b"hang, please"))) for number in range(3)]
    pool.close()
    assert all(isinstance(future.exception(0), CancelledError) for future in futures)
    assert worker_pids(os.getpid(), DEVICE) == set()
    assert (descriptors(), threading.active_count()) == (before, threads)
    assert caplog.records == []


def test_a_pool_that_is_closed_while_the_device_starts(open_pool: Open) -> None:
    pool = open_pool(wait=False)
    future = pool.submit(ImageRef(data=jpeg()))
    pool.close()
    assert isinstance(future.exception(0), CancelledError)
    assert worker_pids(os.getpid(), DEVICE) == set()


def test_the_process_imports_no_more_than_its_decoder_needs() -> None:
    code = "import sys, vlmbatch.images.loading.device_worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "torchvision", "transformers", "pyarrow"}.isdisjoint(done.stdout.split())
