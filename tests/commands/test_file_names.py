"""Every name that a file system allows, in every place where a command takes one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_process import call
from model_folder import make_model_folder
from PIL import Image

import vlmbatch.session.replica

SAMPLE_MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
# Room for the longest name of a file beside an output, and for two digits before the name.
NAMES = st.binary(min_size=1, max_size=255 - len(b".00.errors.jsonl.vlmbatch.tmp")).map(
    lambda name: os.fsdecode(name.replace(b"/", b"\xff").replace(b"\0", b"\xfe"))
)
ODD_NAMES = (
    "d\udce9",
    "-",
    " a b ",
    "[red]%s#?",
    "new\nline",
    "a:b'\"$",
    "\x1b[0m",
    "é" * 9,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return make_model_folder(folder / "model")


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_engine(config: object, inputs: object) -> FakeEngine:
        return FakeEngine(lambda rows: None)

    monkeypatch.setattr(vlmbatch.session.replica, "load_engine", load_engine)


class Job:
    """A manifest with an image, and what else a command takes, all of them named ``name``."""

    def __init__(self, folder: Path, model: Path, name: str) -> None:
        # The number keeps the name from being ".", "..", an option, or of another kind.
        self.folder = folder / f"0{name}"
        self.folder.mkdir()
        self.name = name
        self.model = self.folder / f"1{name}"
        shutil.copytree(model, self.model)
        self.images = self.folder / f"2{name}"
        self.images.mkdir()
        Image.new("RGB", (8, 8)).save(self.images / "a.png")
        self.rows: list[dict[str, Any]] = [
            {"prompt": "<image>Is it?", "image": "a.png"},
            {"prompt": "<image>And this?", "image": "none.png"},
        ]
        self.manifest = self.write_manifest("jsonl")
        self.config = self.folder / f"3{name}.toml"
        self.config.write_text("max_tokens = 4\n")
        self.template = self.folder / f"4{name}.jinja"
        self.template.write_text("{{ messages[0]['content'] }}")

    def write_manifest(self, kind: str) -> Path:
        path = self.images / f"5{self.name}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        else:
            with path.open("wb") as file:
                pq.write_table(pa.Table.from_pylist(self.rows), file)
        return path

    def call(self, command: str, *arguments: object) -> int:
        options = ("--config", self.config, "--image-workers", 0, "--image-root", self.images)
        return call([command, *arguments, "-m", self.model, *options, "--no-progress"])

    def close(self) -> None:
        shutil.rmtree(self.folder)


def for_every_name(test: Callable[..., None]) -> Callable[..., None]:
    test = settings(deadline=None, max_examples=2)(given(name=NAMES)(test))
    for name in ODD_NAMES:
        test = example(name=name)(test)
    return test


def read(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows


@for_every_name
def test_a_run_is_finished_resumed_and_read_back(folder: Path, model: Path, name: str) -> None:
    job = Job(folder, model, name)
    try:
        output = job.folder / f"6{name}.parquet"
        summary = job.folder / f"7{name}"
        arguments = (job.write_manifest("parquet"), "-o", output, "--summary-json", summary)
        template = ("--chat", "--chat-template", job.template)
        assert job.call("run", *arguments, *template) == 1
        assert [row["error_code"] for row in read(output)] == [None, "image_missing"]
        figures = json.loads(summary.read_text())
        assert (figures["rows"], figures["output"]) == (2, str(output))
        assert job.call("run", *arguments, *template, "--retry-failed") == 1
        assert call(["status", output]) == 1
        assert call(["status", output, "--json"]) == 1
    finally:
        job.close()


@for_every_name
def test_a_folder_of_shards(folder: Path, model: Path, name: str) -> None:
    job = Job(folder, model, name)
    try:
        output = job.folder / f"6{name}"
        arguments = (job.manifest, "-o", f"{output}/", "--shard-rows", 1)
        for more in ((), ("--retry-failed",)):
            assert job.call("run", *arguments, *more) == 1
        parts = sorted(output.iterdir())
        assert [row["status"] for part in parts for row in read(part)] == ["ok", "error"]
        assert call(["status", output]) == 1
    finally:
        job.close()


@for_every_name
def test_batch_files(folder: Path, model: Path, name: str) -> None:
    job = Job(folder, model, name)
    try:
        requests = job.images / f"8{name}.jsonl"
        body = {"model": "m", "prompt": "<image>Is it?", "images": ["a.png"]}
        request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
        requests.write_text(json.dumps(request) + "\n")
        output = job.folder / f"6{name}.jsonl"
        for _ in range(2):
            assert job.call("run", requests, "-o", output) == 0
        assert json.loads(output.read_text())["custom_id"] == "a"
    finally:
        job.close()


@for_every_name
def test_errors_are_listed_and_lines_written(folder: Path, model: Path, name: str) -> None:
    job = Job(folder, model, name)
    try:
        errors = job.folder / f"6{name}"
        assert job.call("validate", job.manifest, "--errors", errors, "--decode-images") == 1
        (found,) = map(json.loads, errors.read_text().splitlines())
        assert (found["row_index"], found["error_code"]) == (1, "image_missing")
        assert found["file"] == str(job.manifest)
        assert job.call("run", job.manifest, "-o", "-") == 1
    finally:
        job.close()


@settings(deadline=None, max_examples=3)
@given(name=NAMES)
@example(name="d\udce9")
def test_features_are_stored_and_used(folder: Path, name: str) -> None:
    job = Job(folder, SAMPLE_MODEL, name)
    try:
        output = job.folder / f"6{name}"
        for _ in range(2):
            assert job.call("features", job.manifest, "-o", output) == 1
        rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
        assert (output / rows[0]["image"]).is_file()
        assert rows[1]["image"].endswith("none.png")
        arguments = ("-m", SAMPLE_MODEL, "--image-input-type", "image_features")
        assert call(["validate", output / "manifest.jsonl", *arguments]) == 1
    finally:
        job.close()


@pytest.mark.parametrize("output", ["-a.parquet", "--out.parquet", "-/", "--overwrite/"])
def test_names_that_begin_with_a_dash(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    job = Job(tmp_path, model, "x")
    monkeypatch.chdir(tmp_path)
    Path("-m.jsonl").write_text(json.dumps({"prompt": "Is it?"}) + "\n")
    arguments = ["run", "-m", job.model, "--no-progress", f"--output={output}", "--", "-m.jsonl"]
    assert call(arguments) == 0
    assert Path(output).exists()
