"""Whatever ends the work of a thread ends the run, with that error: nothing hangs or is left out.

Not only exceptions: a decoder may call ``sys.exit``, and a panic in Rust is a BaseException.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from in_process import call
from pixel_scaling import GRID
from worker_processes import PROCESSOR

import vlmbatch.stages.sink
from vlmbatch.bench import monitor
from vlmbatch.bench.monitor import Monitor
from vlmbatch.config import ImageLimits, SamplingParams
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.images.loading.process import WorkerProcess
from vlmbatch.jobs.named_images import ImageNamer
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.validate import validate_rows
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.prompt_processor import PromptProcessor
from vlmbatch.output.feature_folder import FeatureFiles
from vlmbatch.stages.answer import to_result
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import Prepared, start_preparing
from vlmbatch.types import ImageInput, ImageRef, PixelImage, Row

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples/tiny-llava"

pytestmark = pytest.mark.timeout(60)  # the failures here were hangs


class PanicError(BaseException):
    """As pyo3's PanicException, which derives from BaseException alone."""


KINDS = [KeyError("planted"), PanicError("planted"), SystemExit(0), KeyboardInterrupt()]
every_kind = pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)


def fail(error: BaseException, *_: object, **__: object) -> NoReturn:
    raise error


def row(index: int, *images: str) -> Row:
    refs = tuple(ImageRef(path) for path in images)
    return Row(index, str(index), index + 1, "m", "<image>", images=refs, sampling=SamplingParams())


def take_until_it_raises(feed: RowFeed) -> tuple[list[int], BaseException | None]:
    taken = []
    try:
        while (prepared := feed.poll(timeout=5.0)) is not None:
            taken.append(prepared.row.index)
    except BaseException as error:  # noqa: BLE001  what is raised is what the tests are about
        return taken, error
    finally:
        feed.close()
    return taken, None


@every_kind
def test_in_the_reader(error: BaseException) -> None:
    def rows() -> Iterator[Row]:
        yield from (row(index) for index in range(5))
        raise error

    feed = RowFeed(rows(), Prepared, threads=2, depth=8, window=8)
    taken, raised = take_until_it_raises(feed)
    assert (sorted(taken), raised) == ([0, 1, 2, 3, 4], error)


@every_kind
def test_in_a_preparing_thread(error: BaseException) -> None:
    def prepare(each: Row) -> Prepared:
        return Prepared(each) if each.index != 3 else fail(error)

    feed = RowFeed(map(row, range(20)), prepare, threads=1, depth=30, window=30)
    assert take_until_it_raises(feed) == ([0, 1, 2], error)


class StubProcessor:
    """Fails where a request is made of an image that has come."""

    def __init__(self, error: BaseException) -> None:
        self.encode = partial(fail, error)

    def tokenize(self, row: Row) -> None:
        pass


class StubLoader:
    def __init__(self) -> None:
        self.image: Future[ImageInput] = Future()

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        return self.image

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass


@every_kind
def test_where_an_image_comes_late(error: BaseException) -> None:
    loader = StubLoader()
    processor: Any = StubProcessor(error)
    start = partial(start_preparing, processor=processor, loader=loader, known=lambda row: None)
    feed = RowFeed(iter([row(0, "a")]), start, threads=1, depth=3, window=3)
    assert feed.poll(timeout=0.1) is None
    loader.image.set_result(PixelImage(np.zeros((2, 2, 3), np.uint8), b"", GRID))
    assert take_until_it_raises(feed) == ([], error)


@every_kind
@pytest.mark.parametrize("method", ["__init__", "wait_ready", "decode"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_in_an_image_workers_thread(
    error: BaseException, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerProcess, method, partial(fail, error))
    workers = ImageWorkers(ImageLimits(), PROCESSOR, 1, 5.0, slots=2)
    try:
        with pytest.raises(type(error)) as caught:
            workers.submit(ImageRef("a.jpg")).result(timeout=30)
        assert caught.value is error
    finally:
        workers.close()


@every_kind
def test_in_a_validating_thread(error: BaseException) -> None:
    checked = validate_rows(
        [row(0), row(1, "a.jpg"), row(2)], StubEncoder(), FailingGrids(error), threads=2
    )
    assert next(checked)[0].index == 0
    with pytest.raises(type(error)) as caught:
        list(checked)
    assert caught.value is error


class FailingGrids:
    def __init__(self, error: BaseException) -> None:
        self.of = partial(fail, error)

    def close(self) -> None:
        pass


class StubEncoder:
    def tokenize(self, row: Row) -> Any:
        return None

    def place(self, tokens: object, grids: object) -> EncodedPrompt:
        return EncodedPrompt([1])


@every_kind
def test_in_the_monitor(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "resident_bytes", partial(fail, error))
    with pytest.raises(type(error)) as caught, Monitor(torch.device("cpu")):
        pass
    assert caught.value is error
    with pytest.raises(ZeroDivisionError), Monitor(torch.device("cpu")):
        raise ZeroDivisionError  # the work's own error goes before


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.jsonl"
    image = str(ROOT / "samples/images/1001000001.jpg")
    rows = [{"prompt": "<image> What?", "image": image, "max_tokens": 1} for _ in range(12)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def failing_at(call_number: int, error: BaseException, function: Any) -> Any:
    """``function``, which raises ``error`` in place of its n-th call."""
    lock, calls = threading.Lock(), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            number = calls
        return function(*arguments, **options) if number != call_number else fail(error)

    return counted


def broken_rows(error: BaseException, self: Manifest, rows: Any = Manifest.rows) -> Iterator[Row]:
    yield from list(rows(self))[:5]
    raise error


@pytest.mark.parametrize("error", KINDS[1:], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("thread", ["reader", "preparing", "writer"])
def test_a_run_says_so_and_goes_on_when_run_again(
    thread: str,
    error: BaseException,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, summary = manifest.with_name("out.parquet"), manifest.with_name("s.json")
    summary.write_text('{"exit_status": 0}')
    command = ["run", manifest, "-m", MODEL, "-o", output, "--image-workers", 0]
    command += ["--no-progress", "--summary-json", summary]
    with monkeypatch.context() as patch:
        match thread:
            case "reader":
                patch.setattr(Manifest, "rows", lambda self: broken_rows(error, self))
            case "preparing":
                broken = failing_at(6, error, PromptProcessor.tokenize)
                patch.setattr(PromptProcessor, "tokenize", broken)
            case "writer":
                broken = failing_at(6, error, to_result)
                patch.setattr(vlmbatch.stages.sink, "to_result", broken)
        status = call(command)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert status == (130 if interrupted else 70)
    assert json.loads(summary.read_text())["exit_status"] == status
    message = "interrupted: " if interrupted else f"internal error: {type(error).__name__}"
    assert f"error: {message}" in capsys.readouterr().err
    assert not output.exists()
    assert call(command) == 0
    assert pq.read_table(output)["status"].to_pylist() == ["ok"] * 12


@pytest.mark.parametrize("error", KINDS[1:3], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("thread", ["reading", "writing"])
def test_features_too(
    thread: str, error: BaseException, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = manifest.with_name("features")
    command = ["features", manifest, "-m", MODEL, "-o", output, "--image-workers", 0, "-q"]
    with monkeypatch.context() as patch:
        if thread == "reading":
            patch.setattr(ImageNamer, "name", failing_at(6, error, ImageNamer.name))
        else:
            patch.setattr(FeatureFiles, "write", partial(fail, error))
        assert call(command) == 70
    assert not (output / "manifest.jsonl").exists()
    assert call(command) == 0
