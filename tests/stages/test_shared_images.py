"""A run whose rows share images far apart: each image once, in little memory, in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from model_folder import IMAGE_SIZE, make_model_folder
from PIL import Image

import vlmbatch.jobs.run
import vlmbatch.session.replica
from vlmbatch.config import (
    FileDestination,
    ImageLoading,
    JobConfig,
    ManifestConfig,
    SamplingParams,
    SessionConfig,
)
from vlmbatch.durable.spill import Spill
from vlmbatch.engine.sequence import Sequence
from vlmbatch.output.reorder import ReorderBuffer
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.stages.grouping import RowGroups
from vlmbatch.stats import RunStats
from vlmbatch.types import Request, Result, Row

IMAGES, QUESTIONS = 40, 6
IMAGE_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
TINY = HostMemory(
    decoded=3 * IMAGE_BYTES,
    pixels=5 * IMAGE_BYTES,
    encoded=2**10,
    rows=2**11,
    results=2**10,
    window_rows=IMAGES * (QUESTIONS - 1) + 10,
)


class ImageEngine(FakeEngine):
    """Remembers the images of its requests."""

    device = SimpleNamespace(type="cpu")

    def __init__(self) -> None:
        super().__init__(lambda rows: None, max_num_seqs=8)
        self.images: list[bytes] = []

    def add(self, request: Request) -> Sequence:
        self.images += [image.content_hash for image in request.images]
        return super().add(request)


class Most:
    """The most that was held at once."""

    def __init__(self) -> None:
        self.pickled = self.rows = self.results = 0


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Iterator[Most]:
    seen = Most()
    put, add, push = Spill.put, RowGroups.add, ReorderBuffer.push

    def watched_put(self: Spill[object], value: object) -> object:
        ticket = put(self, value)
        seen.pickled = max(seen.pickled, self.num_bytes)
        return ticket

    def watched_add(self: RowGroups, row: Row) -> None:
        add(self, row)
        seen.rows = max(seen.rows, len(self))

    def watched_push(self: ReorderBuffer, result: Result) -> None:
        push(self, result)
        seen.results = max(seen.results, self.lag)

    monkeypatch.setattr(Spill, "put", watched_put)
    monkeypatch.setattr(RowGroups, "add", watched_add)
    monkeypatch.setattr(ReorderBuffer, "push", watched_push)
    monkeypatch.setattr(Spill.__init__, "__kwdefaults__", {"loose": 4, "segment_bytes": 2000})
    yield seen


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    rng = np.random.default_rng(0)
    for image in range(IMAGES):
        pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{image}.png")
    with (tmp_path / "m.jsonl").open("w") as file:
        for question in range(QUESTIONS):
            for image in range(IMAGES):
                row = {"id": f"{question}-{image}", "prompt": f"<image>{question}?", "n": question}
                file.write(json.dumps({**row, "image": f"{image}.png"}) + "\n")
    model = str(make_model_folder(tmp_path / "model"))
    return JobConfig(
        SessionConfig(model, image_loading=ImageLoading(workers=0)),
        ManifestConfig(str(tmp_path / "m.jsonl")),
        FileDestination(tmp_path / "out.parquet"),
        SamplingParams(max_tokens=8),
        queue_rows=8,
    )


def answers(
    job: JobConfig, engine: ImageEngine, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, object]]:
    monkeypatch.setattr(vlmbatch.session.replica, "load_engine", lambda config, inputs: engine)
    vlmbatch.jobs.run.run(job, RunStats())
    assert isinstance(job.destination, FileDestination)
    rows: list[dict[str, object]] = pq.read_table(job.destination.path).to_pylist()
    assert [row["row_index"] for row in rows] == list(range(IMAGES * QUESTIONS))
    assert [row["id"] for row in rows] == [
        f"{question}-{image}" for question in range(QUESTIONS) for image in range(IMAGES)
    ]
    assert [row["n"] for row in rows] == [q for q in range(QUESTIONS) for _ in range(IMAGES)]
    return rows


def test_rows_come_image_by_image_whatever_the_manifest_says(
    job: JobConfig, most: Most, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_out: list[int] = []
    pop = RowGroups.pop

    def watched_pop(self: RowGroups) -> Row:
        row = pop(self)
        handed_out.append(row.index)
        return row

    monkeypatch.setattr(RowGroups, "pop", watched_pop)
    engine = ImageEngine()
    answers(job, engine, monkeypatch)
    by_image = np.arange(QUESTIONS * IMAGES).reshape(QUESTIONS, IMAGES).T
    assert handed_out == by_image.ravel().tolist()
    assert sorted(Counter(engine.images).values()) == [QUESTIONS] * IMAGES


def test_a_tiny_budget_is_kept_and_the_answers_are_the_same(
    job: JobConfig, most: Most, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(job, ImageEngine(), monkeypatch)
    assert most.rows > TINY.window_rows - 50, "or there is nothing to bound"
    most.pickled = most.rows = most.results = 0
    monkeypatch.setattr(HostMemory, "divide", lambda total: TINY)
    again = replace(
        job, destination=FileDestination(Path(job.session.model).with_name("again.parquet"))
    )
    assert answers(again, ImageEngine(), monkeypatch) == expected
    assert 0 < most.pickled <= max(TINY.rows, TINY.results)
    assert most.rows <= TINY.window_rows and most.results <= TINY.window_rows
