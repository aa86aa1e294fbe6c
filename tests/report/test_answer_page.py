"""``vlmbatch report``: pages of every kind of output, and what hostile rows cannot do to them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headless import rendered
from hypothesis import given
from hypothesis import strategies as st
from in_process import call
from PIL import Image
from sample_model import MODEL

from vlmbatch.durable.run_record import RunRecord, write_record
from vlmbatch.errors import OutputError
from vlmbatch.jobs.report import ReportConfig, report, write_page
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.report.figures import COUNTED, Figures, histogram, pace_figures
from vlmbatch.report.page import page
from vlmbatch.report.thumbnails import SIDE
from vlmbatch.stats import Pace, RunStats

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror=alert(1)>\u2028<!--'


def data_of(path: Path) -> dict[str, Any]:
    """What a page's program is given."""
    text = path.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def write_manifest(folder: Path, num_rows: int = 12) -> Path:
    Image.new("RGB", (900, 500), (200, 40, 40)).save(folder / "red.png")
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{n}",
            "prompt": f"USER: <image>\n{n}? ASSISTANT:",
            "image": "red.png",
            "kind": str(n % 3),
        }
        for n in range(num_rows)
    ]
    rows[4]["image"] = "missing.png"
    rows[5]["prompt"] = "USER: " + HOSTILE + "<image> ASSISTANT:"
    rows[5]["kind"] = HOSTILE
    del rows[6]["image"], rows[6]["prompt"]
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of one manifest: a file, shards, parts, one with inputs, and a batch file."""
    folder = tmp_path_factory.mktemp("outputs")
    manifest = write_manifest(folder)
    batch = folder / "batch.jsonl"
    bodies = [
        {"model": "m", "prompt": f"USER: {n}? ASSISTANT:", "max_tokens": 2 if n else -1}
        for n in range(5)
    ]
    requests = [
        {"custom_id": f"b{n}", "method": "POST", "url": "/v1/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    batch.write_text("".join(json.dumps(request) + "\n" for request in requests))
    common = ["-m", MODEL, "--max-tokens", 2, "-q", "--image-workers", 0]
    outputs: dict[str, list[Any]] = {
        "file.parquet": [],
        "kept.parquet": ["--keep-inputs", "--column-prefix", "own_"],
        "shards": ["--shard-rows", 5],
        "sample.parquet": ["--sample", 6],
    }
    for name, options in outputs.items():
        assert call(["run", manifest, "-o", folder / name, *common, *options]) == 1
    for number in range(2):
        assert (
            call(["run", manifest, "-o", folder / "parts", "--shard", f"{number}/2", *common]) == 1
        )
    assert call(["run", batch, "-o", folder / "results.jsonl", *common]) == 1
    return folder


@pytest.mark.parametrize("name", ["file.parquet", "kept.parquet", "shards", "parts"])
def test_rows_stand_beside_what_they_asked(folder: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "page.html"
    assert call(["report", folder / name, "-o", target, "-q"]) == 0
    data = data_of(target)
    assert [row["id"] for row in data["rows"]] == [f"r{n}" for n in range(12)]
    assert [row["answers"][0]["code"] for row in data["rows"]][4] == "image_missing"
    assert data["rows"][5]["prompt"] == "USER: " + HOSTILE + "<image> ASSISTANT:"
    assert ["kind", HOSTILE] in data["rows"][5]["extra"]
    assert data["rows"][6]["prompt"] is None
    assert data["rows"][0]["images"][0].startswith("data:image/jpeg;base64,")
    assert data["rows"][4]["images"][0].startswith("no picture: ")
    assert data["lead"].startswith("12 rows: 10 answered, 2 errors")
    assert data["notes"] == []


def test_a_batch_file_with_its_errors(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert call(["report", folder / "results.jsonl", "-o", target, "-q"]) == 0
    rows = data_of(target)["rows"]
    assert [row["id"] for row in rows] == [f"b{n}" for n in range(5)]
    assert [row["answers"][0]["status"] for row in rows] == ["error", *["ok"] * 4]
    assert rows[1]["prompt"] == "USER: 1? ASSISTANT:"


@pytest.mark.parametrize("command", [["status"], ["report", "-o", "page.html"]])
def test_a_file_of_errors_alone_is_no_output(
    folder: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert call([*command, folder / "results.errors.jsonl"]) == 2
    assert f"has the errors of {folder / 'results.jsonl'}: name that" in capfd.readouterr().err


def test_a_sample_shows_its_own_prompts(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert call(["report", folder / "sample.parquet", "-o", target, "-q"]) == 0
    for row in data_of(target)["rows"]:
        if row["prompt"] is not None and row["id"] != "r5":
            assert row["prompt"] == f"USER: <image>\n{row['id'][1:]}? ASSISTANT:"


def test_another_manifest_is_told_of(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "r0", "prompt": "only this"}\n')
    target = tmp_path / "page.html"
    assert call(["report", folder / "file.parquet", "-o", target, "--manifest", other, "-q"]) == 0
    data = data_of(target)
    assert [row["prompt"] for row in data["rows"]] == ["only this", *[None] * 11]
    assert "of 12 rows on this page 11 are others there" in data["notes"][0]
    missing = ["--manifest", tmp_path / "no.jsonl", "--overwrite"]
    assert call(["report", folder / "file.parquet", "-o", target, *missing, "-q"]) == 2


def test_hostile_text_stays_text(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert call(["report", folder / "file.parquet", "-o", target, "-q"]) == 0
    text = target.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "default-src 'none'" in text
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    shown = rendered(target, tmp_path / "profile")
    assert "<title>file.parquet</title>" in shown  # no other program has run
    assert shown.count("<article") == 12
    assert "&lt;/script&gt;&lt;script&gt;document.title" in shown
    assert shown.count('src="data:image/jpeg') == 10
    assert "12 of the 12 rows on this page match" in shown


def test_pictures_are_small(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert call(["report", folder / "file.parquet", "-o", target, "-q", "--rows", 1]) == 0
    url = next(row["images"][0] for row in data_of(target)["rows"] if row["images"])
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        assert picture.size == (SIDE, round(SIDE * 500 / 900))


def write_output(path: Path, num_rows: int) -> None:
    """Answers as a run writes them: most alike, one error of a kind of its own."""
    schema = RESULT_SCHEMA
    rare = num_rows // 3
    columns: dict[str, Any] = {
        "row_index": np.arange(num_rows),
        "id": [str(n) for n in range(num_rows)],
        "status": ["error" if n == rare else "ok" for n in range(num_rows)],
        "text": [None if n == rare else "yes" * (n % 5) for n in range(num_rows)],
        "finish_reason": [None if n == rare else "stop" for n in range(num_rows)],
        "prompt_tokens": np.full(num_rows, 600),
        "image_tokens": np.full(num_rows, 576),
        "completion_tokens": np.arange(num_rows) % 7,
        "error_code": ["engine_error" if n == rare else None for n in range(num_rows)],
        "error_message": ["it broke" if n == rare else None for n in range(num_rows)],
    }
    pq.write_table(pa.table(columns, schema), path, row_group_size=4096)


def test_a_large_output_shows_some_rows_of_every_kind(tmp_path: Path) -> None:
    output, target = tmp_path / "large.parquet", tmp_path / "page.html"
    write_output(output, 30_000)
    written = report(output, target, ReportConfig(rows=100), RunStats())
    data = data_of(target)
    assert (written.rows, written.shown, len(data["rows"])) == (30_000, 100, 100)
    assert "100 of 30,000 rows are on this page" in data["notes"][0]
    assert sum(row["row"] == 10_000 for row in data["rows"]) == 1  # the only error
    thirds = Counter(row["row"] // 10_000 for row in data["rows"])
    assert min(thirds.values()) > 25
    assert sum(count for _, count in data["figures"][-1]["bars"]) == 29_999  # of all rows


def test_what_is_no_output_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "foreign.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "no output"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun.vlmbatch").mkdir()
    write_record(tmp_path / "begun.vlmbatch" / "run.json", RunRecord.new({}, "f", 3))
    write_output(tmp_path / "good.parquet", 3)
    target = tmp_path / "page.html"
    for arguments, status, message in (
        ([tmp_path / "missing.parquet", "-o", target], 2, "there is no such output"),
        ([tmp_path / "foreign.parquet", "-o", target], 74, "foreign.parquet cannot be read"),
        ([tmp_path / "other.parquet", "-o", target], 2, "does not start with the columns"),
        ([tmp_path / "rows.jsonl", "-o", target], 2, "name an output, not a manifest"),
        ([tmp_path / "empty", "-o", target], 2, "holds no output of a run"),
        ([tmp_path / "begun", "-o", target], 1, "its run is not finished"),
        ([tmp_path / "good.parquet", "-o", tmp_path / "there.html"], 2, "add --overwrite"),
        ([tmp_path / "good.parquet", "-o", tmp_path / "good.parquet"], 2, "ends in .html"),
        ([tmp_path / "good.parquet"], 2, "no page given: add -o good.html"),
        ([tmp_path / "good.parquet", "-o", target, "--rows", 0], 2, "must be from 1 to 10000"),
    ):
        assert call(["report", *arguments]) == status
        assert message in capfd.readouterr().err
    assert not target.exists()
    assert (tmp_path / "there.html").read_text() == "mine"


@given(st.text())
def test_data_cannot_end_its_element(text: str) -> None:
    made = page(text, {"text": text})
    block = made.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(block) == {"text": text}
    assert made.count("</script>") == 2


@given(st.lists(st.integers(0, 100_000), min_size=1))
def test_bars_have_every_value_once(values: list[int]) -> None:
    figure = histogram("Length", Counter(values))
    assert sum(count for _, count in figure["bars"]) == len(values)
    assert len(figure["bars"]) <= 40
    assert figure["total"] == sum(values)


@given(st.lists(st.sampled_from(["stop", "length", None]), max_size=300), st.integers(1, 50))
def test_chosen_rows_are_as_many_as_asked(reasons: list[str | None], size: int) -> None:
    figures = Figures()
    empty: dict[str, list[Any]] = {name: [None] * len(reasons) for name in COUNTED}
    empty |= {"status": ["ok"] * len(reasons), "finish_reason": list(reasons)}
    schema = pa.schema([RESULT_SCHEMA.field(name) for name in COUNTED])
    figures.add(pa.table(empty, schema))
    chosen = figures.choose(size)
    assert len(chosen) == len(set(chosen.tolist())) == min(size, len(reasons))
    if size >= 3:
        assert {reasons[row] for row in chosen.tolist()} == set(reasons)


def test_a_long_run_keeps_few_points_of_its_pace() -> None:
    pace = Pace()
    for second in range(10_000):
        pace.note(float(second), 10 * second, 70 * second)
    assert 100 < len(pace.points) <= 240
    rows, tokens = pace_figures(pace.points)
    assert {count for _, count in rows["bars"]} == {10}
    assert {count for _, count in tokens["bars"]} == {70}
    assert pace_figures(pace.points[:2]) == []


def test_images_that_share_the_runs_prompt(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (90, 50), (200, 40, 40)).save(tmp_path / "photos" / name)
    run = ["run", tmp_path / "photos", "-m", MODEL, "--prompt", "<image> What?", "-q"]
    run += ["--max-tokens", 1, "--image-workers", 0]
    assert call([*run, "-o", tmp_path / "out.parquet"]) == 0
    for part in ("0/2", "1/2"):
        assert call([*run, "-o", tmp_path / "parts", "--shard", part]) == 0
    assert call(["merge", tmp_path / "parts", "-o", tmp_path / "merged.parquet", "-q"]) == 0
    for name in ("out.parquet", "parts", "merged.parquet"):
        page = tmp_path / "page.html"
        assert call(["report", tmp_path / name, "-o", page, "--overwrite", "-q"]) == 0
        rows = data_of(page)["rows"]
        assert [(row["prompt"], len(row["images"])) for row in rows] == [("<image> What?", 1)] * 2


def test_nothing_is_left_of_a_page_that_cannot_be_put_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        write_page(tmp_path / "page.html", "title", {}, RunStats())
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
