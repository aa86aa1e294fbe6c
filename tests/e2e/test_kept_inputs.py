"""``--keep-inputs``, and what Hugging Face's datasets knows of columns, in every kind of output."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import FakeEngine
from in_process import call
from model_folder import make_model_folder
from PIL import Image

import vlmbatch.output.parquet_writer
import vlmbatch.session.replica
from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.sequence import Sequence
from vlmbatch.manifest.huggingface import IMAGE_TYPE
from vlmbatch.manifest.open import open_manifest
from vlmbatch.types import Request

NUM_ROWS = 60
LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")


class Engine(FakeEngine):
    """Stops its run, as SIGTERM does, once it has answered so many rows."""

    def __init__(self, computed: list[int], stop_after: int) -> None:
        def note(rows: list[int]) -> None:
            if len(computed) < stop_after <= len(computed) + len(rows):
                os.kill(os.getpid(), signal.SIGTERM)
            computed.extend(rows)

        super().__init__(note, max_num_seqs=4)


class LateEngine(FakeEngine):
    """Begins the first row once all others are answered."""

    def __init__(self, others: int) -> None:
        self._others = others
        self._first: Sequence | None = None
        super().__init__(self._count, step_seconds=0.001)  # others read meanwhile

    def _count(self, rows: list[int]) -> None:
        self._others -= len(rows)

    @property
    def num_unfinished(self) -> int:
        return super().num_unfinished + (self._first is not None)

    def add(self, request: Request) -> Sequence:
        sequence = super().add(request)
        if request.index == 0:
            self._first = self._waiting.pop()
        return sequence

    def step(self) -> list[TokenOutput | SequenceFailure]:
        if self._others == 0 and self._first is not None:
            self._waiting.append(self._first)
            self._first = None
        return super().step()


@pytest.fixture(autouse=True)
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Have the next runs stopped after so many rows; the list has the rows that they answer."""

    def set_up(num_rows: int) -> list[int]:
        computed: list[int] = []
        monkeypatch.setattr(
            vlmbatch.session.replica,
            "load_engine",
            lambda config, inputs: Engine(computed, num_rows),
        )
        return computed

    set_up(10**6)
    return set_up


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 7, 9)).save(file, "PNG")
    return file.getvalue()


def rows(image: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [
        {
            "q": None if number % 20 == 7 else f"<image>What is {number}?",
            "photo": image(number),
            "label": number % 2,
        }
        for number in range(NUM_ROWS)
    ]


def write(path: Path, image: Callable[[int], Any], image_type: pa.DataType) -> Path:
    found = rows(image)
    columns = {
        "q": pa.array([row["q"] for row in found]),
        "photo": pa.array([row["photo"] for row in found], image_type),
        "label": pa.array([row["label"] for row in found], pa.int64()),
    }
    features = {"q": {"dtype": "string", "_type": "Value"}, "label": LABEL}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=25)
    return path


def run(model: Path, manifest: Path, output: Path | str, *options: object) -> int:
    columns = ("--prompt-column", "q", "--image-column", "photo")
    arguments = ("run", manifest, "-m", model, "-o", output, *columns, "-q", "--image-workers", 0)
    return call([*arguments, "--max-tokens", 4, *options])


def features(path: Path) -> dict[str, Any]:
    metadata = json.loads(pq.read_metadata(path).metadata[b"huggingface"])
    found: dict[str, Any] = metadata["info"]["features"]
    return found


EMBEDDED = [
    (pa.binary(), picture, lambda data: {"bytes": data, "path": None}, IMAGE_TYPE),
    (pa.large_binary(), picture, lambda data: {"bytes": data, "path": None}, IMAGE_TYPE),
    (
        pa.struct([("path", pa.string()), ("bytes", pa.binary()), ("size", pa.int64())]),
        lambda number: {"bytes": picture(number), "path": f"{number}.png", "size": 1},
        lambda value: {"bytes": value["bytes"], "path": value["path"]},
        IMAGE_TYPE,
    ),
    (
        pa.list_(pa.binary()),
        lambda number: [picture(number)],
        lambda images: [{"bytes": data, "path": None} for data in images],
        pa.list_(IMAGE_TYPE),
    ),
    (pa.string(), lambda number: f"{number}.png", lambda path: path, pa.string()),
]


@pytest.mark.parametrize(("stored", "image", "kept", "kept_type"), EMBEDDED)
def test_prompts_and_images_stand_beside_answers(
    model: Path,
    tmp_path: Path,
    stored: pa.DataType,
    image: Callable[[int], Any],
    kept: Callable[[Any], Any],
    kept_type: pa.DataType,
) -> None:
    for number in range(NUM_ROWS):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    manifest = write(tmp_path / "m.parquet", image, stored)
    output = tmp_path / "out.parquet"
    assert run(model, manifest, output, "--keep-inputs") == 1
    table = pq.read_table(output)
    assert table.schema.field("photo").type == kept_type
    assert table.column_names[-3:] == ["q", "photo", "label"]
    for row, expected in zip(table.to_pylist(), rows(image), strict=True):
        assert (row["q"], row["photo"]) == (expected["q"], kept(expected["photo"]))
        assert row["status"] == ("ok" if row["row_index"] % 20 != 7 else "error")
    pictures: dict[str, Any] = {}
    if kept_type == IMAGE_TYPE:
        pictures = {"photo": {"_type": "Image"}}
    elif stored != pa.string():
        pictures = {"photo": [{"_type": "Image"}]}
    prompts = {"q": {"dtype": "string", "_type": "Value"}}
    assert features(output) == {**prompts, **pictures, "label": LABEL}


def test_features_of_what_passes_through_are_kept(model: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.parquet", picture, pa.binary())
    for output, options in (("a.parquet", ()), ("b", ("--shard-rows", 40))):
        assert run(model, manifest, tmp_path / output, *options) == 1
    paths = [tmp_path / "a.parquet", *sorted((tmp_path / "b").iterdir())]
    assert len(paths) == 3
    assert [features(path) for path in paths] == [{"label": LABEL}] * 3
    assert pq.read_table(paths[0]).column_names[-1:] == ["label"]


@pytest.mark.parametrize(
    "damaged", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": 5}}', b"\xff"]
)
def test_damaged_metadata_says_nothing(tmp_path: Path, damaged: bytes) -> None:
    table = pa.table({"prompt": ["a"], "n": [1]}).replace_schema_metadata({"huggingface": damaged})
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = open_manifest(ManifestConfig(str(tmp_path / "m.parquet")), SamplingParams())
    assert not manifest.scan().extra_schema.metadata


def test_files_that_disagree_leave_a_column_without(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        found = {"label": {**LABEL, "names": names}, "n": {"dtype": "int64", "_type": "Value"}}
        metadata = {"huggingface": json.dumps({"info": {"features": found}})}
        table = pa.table({"prompt": ["a"], "label": [0], "n": [1]})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"m/{name}.parquet")
    manifest = open_manifest(ManifestConfig(str(tmp_path / "m")), SamplingParams())
    stored = json.loads(manifest.scan().extra_schema.metadata[b"huggingface"])
    assert stored == {"info": {"features": {"n": {"dtype": "int64", "_type": "Value"}}}}


@pytest.mark.parametrize("shards", [(), ("--shard-rows", 25)])
def test_resumed_rows_have_their_inputs(
    model: Path,
    tmp_path: Path,
    stop_after: Callable[[int], list[int]],
    shards: tuple[object, ...],
) -> None:
    manifest = write(tmp_path / "m.parquet", picture, pa.binary())
    output, whole = (
        tmp_path / (name if shards else f"{name}.parquet") for name in ("out", "whole")
    )
    assert run(model, manifest, whole, "--keep-inputs", *shards) == 1
    stop_after(30)
    assert run(model, manifest, output, "--keep-inputs", *shards) == 143
    journal = b"".join(path.read_bytes() for path in tmp_path.glob("out*.vlmbatch/journal-*"))
    assert journal and b"PNG" not in journal and b"What is" not in journal
    computed = stop_after(10**6)
    assert run(model, manifest, output, "--keep-inputs", *shards) == 1
    assert 0 < len(computed) <= NUM_ROWS - 30

    def content(path: Path) -> list[Any]:
        return [pq.read_table(part).to_pylist() for part in sorted(path.glob("part-*"))] or [
            pq.read_table(path).to_pylist()
        ]

    assert content(output) == content(whole)
    assert run(model, manifest, output, "--keep-inputs", *shards, "--retry-failed") == 1
    assert content(output) == content(whole)


def test_they_are_part_of_the_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path / "m.parquet", picture, pa.binary())
    assert run(model, manifest, tmp_path / "out.parquet") == 1
    assert run(model, manifest, tmp_path / "out.parquet", "--keep-inputs") == 2
    assert "keep_inputs: none -> true" in capsys.readouterr().err


def test_a_kept_column_may_not_be_called_as_one_of_the_output(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.jsonl").write_text('{"text": "Hello"}\n')
    arguments = ["run", tmp_path / "m.jsonl", "-m", model, "--prompt-column", "text", "-q"]
    arguments += ["--image-workers", 0, "-o"]
    assert call([*arguments, tmp_path / "a.parquet"]) == 0
    assert call([*arguments, tmp_path / "b.parquet", "--keep-inputs"]) == 2
    assert "--column-prefix" in capsys.readouterr().err
    kept = [*arguments, tmp_path / "b.parquet", "--keep-inputs", "--column-prefix", "a_"]
    assert call(kept) == 0
    assert pq.read_table(tmp_path / "b.parquet")["text"].to_pylist() == ["Hello"]


@pytest.mark.parametrize("source", ["file", "standard input", "stream"])
def test_lines_have_them_too(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    source: str,
) -> None:
    manifest = tmp_path / "m.jsonl"
    messages = [{"role": "user", "content": "Hello"}]
    given = [{"prompt": "Is it?", "n": 1}, {"messages": messages, "n": 2}, {"prompt": None}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in given) + "no object\n")
    output = tmp_path / "out.parquet" if source == "standard input" else "-"
    arguments = ["-m", model, "-q", "--keep-inputs", "-o", output, "--image-workers", 0]
    monkeypatch.setattr("vlmbatch.manifest.open._stdin", lambda: manifest.open("rb"))
    assert call(["run", manifest if source == "file" else "-", *arguments]) == 1
    if source == "standard input":
        lines = pq.read_table(output).to_pylist()
    else:
        lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    found = [(row.get("prompt"), row.get("messages"), row.get("n")) for row in lines]
    assert found == [("Is it?", None, 1), (None, messages, 2), (None, None, None), (None,) * 3]


def test_batch_requests_have_no_such_columns(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}
    (tmp_path / "m.jsonl").write_text(json.dumps(request) + "\n")
    arguments = ["run", tmp_path / "m.jsonl", "-m", model, "-o", tmp_path / "a.parquet"]
    assert call([*arguments, "--keep-inputs"]) == 2
    assert "--keep-inputs is for manifests of columns" in capsys.readouterr().err


@pytest.mark.parametrize("readable", [True, False])
def test_images_wait_nowhere_beside_their_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """All rows but the first are done at once, and wait for it: 32 MB of images do not."""
    size, number = 2**19, 64
    manifest, source = tmp_path / "m.parquet", random.Random(1)
    schema = pa.schema([("q", pa.string()), ("photo", pa.binary())])
    with pq.ParquetWriter(manifest, schema, use_dictionary=False) as writer:
        for index in range(number):
            data = source.randbytes(size)
            if readable or index == 0:
                data = picture(index) + data  # decoders stop at a picture's end
            writer.write_table(pa.Table.from_pylist([{"q": "<image>?", "photo": data}], schema))
    engine = LateEngine(number - 1 if readable else 0)
    monkeypatch.setattr(vlmbatch.session.replica, "load_engine", lambda config, inputs: engine)
    monkeypatch.setattr(vlmbatch.output.parquet_writer, "_ROW_GROUP_BYTES", 2**21)
    tracemalloc.start()
    try:
        options = ("--keep-inputs", "--host-memory", "16MiB")
        assert run(model, manifest, tmp_path / "out.parquet", *options) == (0 if readable else 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.metadata.num_rows == number
    assert sum(len(row["photo"]["bytes"]) for row in file.read().to_pylist()) > number * size
    assert peak < 20 * 2**20
