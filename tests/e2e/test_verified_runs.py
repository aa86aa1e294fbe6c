"""``vlmbatch verify``: rows answered again, alone, against what the output has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import call
from sample_model import MODEL, ROOT

from vlmbatch.config import ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.config.option import build, option_values

ROWS = 9


def write_manifest(folder: Path) -> Path:
    lines = (ROOT / "samples/manifest.jsonl").read_text().splitlines()[:ROWS]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["image"] = str(ROOT / "samples" / row["image"])
    rows[2]["image"] = "missing.jpg"
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, its output in a file and in parts, and these merged."""
    folder = tmp_path_factory.mktemp("done")
    manifest = write_manifest(folder)
    options = ["-m", MODEL, "--max-tokens", 6, "--temperature", 0.5, "--stop", "zebra", "-q"]
    options += ["--image-root", "/", "--no-prefix-caching", "--max-model-len", 300]
    assert call(["run", manifest, "-o", folder / "out.parquet", *options]) == 1
    for part in ("0/2", "1/2"):
        call(["run", manifest, "-o", folder / "parts", "--shard", part, *options])
    assert call(["merge", folder / "parts", "-o", folder / "merged.parquet", "-q"]) == 1
    return folder


def verified(capfd: pytest.CaptureFixture[str], status: int, *options: Any) -> Any:
    capfd.readouterr()
    assert call(["verify", *options, "--json", "-q"]) == status
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("name", "num_rows"), [("out.parquet", 100), ("parts", 4), ("merged.parquet", 4)]
)
def test_answers_are_the_same_alone(
    done: Path, capfd: pytest.CaptureFixture[str], name: str, num_rows: int
) -> None:
    found = verified(capfd, 0, done / name, "--rows", num_rows)
    assert (found["rows"], found["answered"]) == (min(num_rows, ROWS - 1), ROWS - 1)
    assert (found["engines"], found["differences"]) == (["vlmbatch"], [])


def test_another_answer_is_found_by_both_engines(
    done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    table = pq.read_table(done / "out.parquet")
    texts = table["text"].to_pylist()
    right, texts[4] = texts[4], "something else"
    place = table.schema.get_field_index("text")
    pq.write_table(table.set_column(place, "text", pa.array(texts)), output)
    shutil.copytree(done / "out.parquet.vlmbatch", tmp_path / "out.parquet.vlmbatch")
    found = verified(capfd, 1, output, "--huggingface")
    assert [
        (line["row"], line["by"], line["stored"], line["again"]) for line in found["differences"]
    ] == [(4, by, "something else", right) for by in ("vlmbatch", "transformers")]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_all_of_several_answers_are_compared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    output, manifest = tmp_path / name, tmp_path / "manifest.jsonl"
    body = {"model": "m", "prompt": "7", "max_tokens": 3, "temperature": 1.0, "n": 2}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    row = request if name == "out.jsonl" else {"id": "a", "prompt": "7", "n": 2}
    manifest.write_text(json.dumps(row))
    options = ["-m", MODEL, "--max-tokens", 3, "--temperature", 1, "--n", 2, "-q"]
    assert call(["run", manifest, "-o", output, *options]) == 0
    assert verified(capfd, 0, output)["differences"] == []
    if name == "out.jsonl":
        line = json.loads(output.read_text())
        line["response"]["body"]["choices"][1]["text"] = "something else"
        output.write_text(json.dumps(line) + "\n")
    else:
        table = pq.read_table(output)
        place = table.schema.get_field_index("texts")
        texts = pa.array([[table["text"][0].as_py(), "something else"]])
        pq.write_table(table.set_column(place, table.schema.field(place), texts), output)
    (found,) = verified(capfd, 1, output)["differences"]
    assert (found["answer"], found["stored"]) == (2, "something else")
    assert call(["verify", output]) == 1
    assert "row 0 (id a), answer 2" in capfd.readouterr().err


def test_a_table_with_the_first_of_a_requests_answers_is_verified_by_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, manifest = tmp_path / "out.parquet", tmp_path / "requests.jsonl"
    body = {"model": "m", "prompt": "7", "max_tokens": 3, "temperature": 1.0, "n": 2}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    manifest.write_text(json.dumps(request))
    assert call(["run", manifest, "-o", output, "-m", MODEL, "-q"]) == 0
    assert verified(capfd, 0, output)["differences"] == []


def test_classes_are_not_asked_of_transformers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a model whose tokenizer keeps the blank that a class stands behind."""
    output = tmp_path / "out.parquet"
    options = ["-m", ROOT / "samples/tiny-qwen-vl", "--choices", "yes,no", "--limit", 2, "-q"]
    assert call(["run", write_manifest(tmp_path), "-o", output, *options]) == 0
    found = verified(capfd, 0, output, "--huggingface")
    assert (found["engines"], found["differences"]) == (["vlmbatch"], [])
    assert "--choices" in found["skipped"]


def test_what_cannot_be_repeated_is_refused(
    done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(tmp_path)
    output = tmp_path / "out.parquet"
    assert call(["run", manifest, "-m", MODEL, "-o", output, "--max-tokens", 1, "-q"]) == 1
    manifest.write_text(manifest.read_text().replace("What", "And what"))
    shutil.copy(output, tmp_path / "alone.parquet")
    parts = tmp_path / "parts"  # without what tells of their runs
    shutil.copytree(done / "parts", parts, ignore=shutil.ignore_patterns("_vlmbatch"))
    assert call(["merge", parts, "-o", tmp_path / "merged.parquet", "-q"]) == 1
    for path, message in (
        (output, "manifest: its rows are others"),
        (tmp_path / "alone.parquet", "no run on it is known"),
        (tmp_path / "missing.parquet", "no run on it is known"),
        (tmp_path / "merged.parquet", "without work folders: verify the folder of its parts"),
    ):
        assert call(["verify", path]) == 2
        assert message in capfd.readouterr().err


def test_options_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    given = {
        "model": "m",
        "chat_template": tmp_path / "t.jinja",
        "image_input_shape": [1, 3, 8, 8],
        "enable_prefix_caching": False,
        "host_memory": 2**30,
        "allow_domain": ["example.org"],
        "max_pixels": 999,
    }
    names = set(option_values(build(SessionConfig, {"model": "m"}, "argument")))
    session = build(
        SessionConfig, {key: value for key, value in given.items() if key in names}, "argument"
    )
    sampling = SamplingParams(stop=("a", "b"), temperature=0.5, seed=3)
    manifest = ManifestConfig("m.jsonl", sample=3, limit=9)
    for config in (session, sampling, manifest):
        values = json.loads(json.dumps(option_values(config)))
        assert build(type(config), values, "argument") == config
