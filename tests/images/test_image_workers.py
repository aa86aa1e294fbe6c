"""Images through worker processes come out as in this process, each once, within bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from encoding import encoded
from PIL import Image
from worker_processes import HOSTILE_DECODERS, PHOTOS, PROCESSOR, wait_until, worker_pids

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.loading.loader import ImageLoader, InProcessLoader
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.models.preprocessor_config import Normalization
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.types import ImageInput, ImageRef, PixelImage

LIMITS = ImageLimits(max_pixels=1_000_000, max_bytes=2**20)
Open = Callable[..., ImageWorkers]


@pytest.fixture
def open_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens pools whose workers obey the names of hostile images, and closes them."""
    monkeypatch.syspath_prepend(HOSTILE_DECODERS)
    pools = []

    def open_pool(num_workers: int = 1, slots: int = 8, recent_bytes: int = 2**20) -> ImageWorkers:
        pools.append(ImageWorkers(LIMITS, PROCESSOR, num_workers, 30.0, slots, recent_bytes))
        return pools[-1]

    yield open_pool
    for pool in pools:
        pool.close()


def test_a_limit_beyond_what_the_system_counts(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    limits = ImageLimits(max_pixels=2**70)
    with contextlib.closing(ImageWorkers(limits, PROCESSOR, 1, 30.0, 8, 2**20)) as workers:
        assert isinstance(outcome(workers, ImageRef(str(tmp_path / "a.png"))), PixelImage)


def test_whoever_waits_for_images_is_told_on_one_thread(open_workers: Open) -> None:
    """However many workers decode them."""
    workers = open_workers(num_workers=3)
    threads: list[str] = []
    photos = sorted(PHOTOS.glob("*.jpg"))
    for path in photos:  # before any worker is up
        future = workers.submit(ImageRef(str(path)))
        future.add_done_callback(lambda _: threads.append(threading.current_thread().name))
    wait_until(lambda: len(threads) == len(photos))
    assert set(threads) == {"image-futures"}


def decoded(loader: ImageLoader, ref: ImageRef) -> PixelImage:
    image = loader.submit(ref).result()
    assert isinstance(image, PixelImage)
    return image


def outcome(loader: ImageLoader, ref: ImageRef) -> ImageInput | RowError:
    try:
        return loader.submit(ref).result()
    except RowError as error:
        return error


def odd_files(folder: Path) -> list[ImageRef]:
    """Photos, and files of other modes, orientations and states of ruin."""
    photo = Image.open(PHOTOS / "chelsea.jpg").resize((120, 90))
    turned = Image.Exif()
    turned[0x0112] = 6
    depth = np.arange(120 * 90, dtype=np.uint16).reshape(90, 120) * 6
    jpeg = encoded(photo, "JPEG")
    files = {
        "alpha.png": encoded(photo.convert("RGBA").rotate(30), "PNG"),
        "palette.gif": encoded(photo.convert("P"), "GIF", transparency=3),
        "depth.png": encoded(Image.fromarray(depth), "PNG"),
        "turned.jpg": encoded(photo, "JPEG", exif=turned),
        "cmyk.jpg": encoded(photo.convert("CMYK"), "JPEG"),
        "dot.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "large.png": encoded(Image.new("1", (2000, 1000)), "PNG"),
        "page.jpg": b"<html>not found</html>",
        "nothing.jpg": b"",
        "käse \udce9.jpg": jpeg,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    paths = [*sorted(PHOTOS.glob("*.jpg")), *(folder / name for name in files), folder / "missing"]
    embedded = [ImageRef(data=jpeg), ImageRef("a label", jpeg[:300]), ImageRef("empty", b"")]
    return [*(ImageRef(str(path)) for path in paths), *embedded]


def test_results_equal_those_in_process(open_workers: Open, tmp_path: Path) -> None:
    workers, here = open_workers(num_workers=2), InProcessLoader(LIMITS, PROCESSOR)
    for ref in odd_files(tmp_path):
        ours, expected = outcome(workers, ref), outcome(here, ref)
        if isinstance(expected, RowError):
            assert isinstance(ours, RowError), ref
            assert (ours.code, ours.message) == (expected.code, expected.message)
        else:
            assert isinstance(ours, PixelImage), (ref, ours)
            assert isinstance(expected, PixelImage)
            assert ours.content_hash == expected.content_hash
            np.testing.assert_array_equal(ours.pixels, expected.pixels)
            assert not ours.pixels.flags.writeable


def test_images_of_many_threads_are_not_mixed_up(open_workers: Open) -> None:
    workers = open_workers(num_workers=3, slots=5)
    colours = [(value, 255 - value, value * 7 % 256) for value in range(200)]

    def pixel(colour: tuple[int, int, int]) -> list[int]:
        data = encoded(Image.new("RGB", (64, 48), colour), "PNG")
        result: list[int] = decoded(workers, ImageRef(data=data)).pixels[20, 20].tolist()
        return result

    with ThreadPoolExecutor(16) as threads:
        assert [tuple(found) for found in threads.map(pixel, colours)] == colours


def test_a_large_embedded_image_reaches_its_worker(open_workers: Open) -> None:
    """Larger than what a socket holds at once."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    ref = ImageRef(data=encoded(Image.fromarray(noise), "BMP"))
    ours = decoded(open_workers(), ref)
    expected = decoded(InProcessLoader(LIMITS, PROCESSOR), ref)
    np.testing.assert_array_equal(ours.pixels, expected.pixels)


def counted_image(folder: Path, name: str = "image") -> ImageRef:
    path = folder / f"{name}.counted"
    shutil.copy(PHOTOS / "coffee.jpg", path)
    return ImageRef(str(path))


def times_decoded(ref: ImageRef) -> int:
    return Path(str(ref.path)).with_suffix(".count").stat().st_size


@pytest.mark.parametrize("embedded", [False, True])
def test_an_image_of_many_rows_is_decoded_once(
    open_workers: Open, tmp_path: Path, embedded: bool
) -> None:
    workers = open_workers(num_workers=2)
    ref = counted_image(tmp_path)
    if embedded:
        ref = ImageRef(ref.path, Path(str(ref.path)).read_bytes())
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda _: workers.submit(ref).result(), range(40)))
    assert times_decoded(ref) == 1
    assert all(image is images[0] for image in images)


def test_embedded_bytes_under_one_name_are_told_apart(open_workers: Open) -> None:
    workers = open_workers()
    images = [
        decoded(workers, ImageRef("same name", encoded(Image.new("L", (9, 9), grey), "PNG")))
        for grey in (10, 200)
    ]
    assert [image.pixels[0, 32, 0] for image in images] == [10, 200]


def test_an_image_at_two_resolutions_is_two_images(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), "red").save(tmp_path / "a.png")
    ones = (1.0, 1.0, 1.0)
    normalization = Normalization(1 / 255, ones, ones)
    images = QwenImageProcessor(28, 784, 10**6, Image.Resampling.BICUBIC, normalization)
    resolutions = [None, ImageResolution(max_pixels=50_000), ImageResolution(max_pixels=100)]
    refs = [ImageRef(str(tmp_path / "a.png"), resolution=each) for each in resolutions]
    here = InProcessLoader(LIMITS, images)
    with contextlib.closing(ImageWorkers(LIMITS, images, 1, 30.0, 8, 2**24)) as workers:
        for _ in range(2):  # decoded, then recalled
            found = [outcome(workers, ref) for ref in refs]
            for ours, ref in zip(found[:2], refs, strict=False):
                expected = decoded(here, ref)
                assert isinstance(ours, PixelImage)
                assert ours.pixels.shape == expected.pixels.shape
                assert ours.content_hash == expected.content_hash
            assert isinstance(found[2], RowError)
            assert found[2].code is ErrorCode.RESOLUTION_INVALID
        assert len({image.content_hash for image in found if isinstance(image, PixelImage)}) == 2
        assert found[0] is outcome(workers, refs[0])


def test_a_file_that_changed_is_decoded_again(open_workers: Open, tmp_path: Path) -> None:
    workers = open_workers()
    ref = counted_image(tmp_path)
    before = workers.submit(ref).result()
    shutil.copy(PHOTOS / "chelsea.jpg", str(ref.path))
    after = workers.submit(ref).result()
    assert times_decoded(ref) == 2
    assert before.content_hash != after.content_hash


def test_errors_are_not_remembered(open_workers: Open, tmp_path: Path) -> None:
    workers = open_workers()
    ref = ImageRef(str(tmp_path / "late.jpg"))
    assert outcome(workers, ref).__class__ is RowError
    shutil.copy(PHOTOS / "coffee.jpg", str(ref.path))
    assert isinstance(outcome(workers, ref), PixelImage)


def test_recent_images_are_bounded(open_workers: Open, tmp_path: Path) -> None:
    workers = open_workers(recent_bytes=2 * 48 * 64 * 3)
    first, second, third = (counted_image(tmp_path, name) for name in "abc")
    for ref in (first, second, first, third, first, second):
        workers.submit(ref).result()
    assert [times_decoded(ref) for ref in (first, second, third)] == [1, 2, 1]


def test_no_more_images_are_under_way_than_slots(open_workers: Open) -> None:
    workers = open_workers(num_workers=1, slots=2)
    futures = [workers.submit(ImageRef(f"{name}.hang")) for name in "ab"]
    third = ThreadPoolExecutor(1)
    waiting = third.submit(workers.submit, ImageRef("c.hang"))
    again = workers.submit(ImageRef("a.hang"))  # takes no further slot
    assert again is futures[0]
    time.sleep(0.1)  # without a bound it would have ended by now
    assert not waiting.done()
    workers.close()
    for future in futures:
        assert isinstance(future.exception(10), CancelledError)
    assert isinstance(waiting.exception(10), CancelledError)
    third.shutdown()


def test_ready_workers_are_all_there(open_workers: Open) -> None:
    workers = open_workers(num_workers=2)
    workers.wait_ready()
    assert len(worker_pids(os.getpid())) == 2
    workers.close()
    workers.wait_ready()  # nobody will come any more


def test_closing_leaves_nothing_behind(open_workers: Open) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = descriptors(), threading.active_count()
    workers = open_workers(num_workers=2)
    for index in range(3):
        assert outcome(workers, ImageRef(f"{index}.crash")).__class__ is RowError
    workers.submit(ImageRef(str(PHOTOS / "coffee.jpg"))).result()
    hanging = workers.submit(ImageRef("a.hang"))
    assert len(worker_pids(os.getpid())) > 0
    workers.close()
    assert isinstance(hanging.exception(0), CancelledError)
    with pytest.raises(CancelledError):
        workers.submit(ImageRef("b.jpg"))
    assert worker_pids(os.getpid()) == set()
    assert (descriptors(), threading.active_count()) == (before, threads)
    workers.close()


def test_workers_import_little() -> None:
    code = "import sys, vlmbatch.images.loading.worker; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "tokenizers", "pyarrow", "typer", "rich", "vlmbatch.cli"}
    assert heavy.isdisjoint(loaded.stdout.split())


def test_no_worker_is_in_reach_of_the_terminal(open_workers: Open) -> None:
    workers = open_workers(num_workers=2)
    workers.submit(ImageRef(str(PHOTOS / "coffee.jpg"))).result()
    wait_until(lambda: len(worker_pids(os.getpid())) == 2)
    groups = {os.getpgid(pid) for pid in worker_pids(os.getpid())}
    assert os.getpgrp() not in groups


def test_forbidden_images_are_refused_in_workers_too(tmp_path: Path) -> None:
    limits = ImageLimits(root=tmp_path)
    workers = ImageWorkers(limits, PROCESSOR, 1, 30.0, 1)
    error = outcome(workers, ImageRef(str(PHOTOS / "coffee.jpg")))
    workers.close()
    assert isinstance(error, RowError)
    assert error.code == ErrorCode.IMAGE_FORBIDDEN
