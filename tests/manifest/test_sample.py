"""``--sample``: rows spread over a manifest, the same ones each time, as the whole gives them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import call
from sample_model import MODEL

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ManifestError
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.sample import sampled_rows

NUM_ROWS = 97


@given(st.integers(0, 400), st.integers(1, 500), st.integers(0, 5))
def test_one_row_of_each_stretch(num_rows: int, size: int, seed: int) -> None:
    rows = sampled_rows(num_rows, size, seed)
    assert len(rows) == min(size, num_rows)
    assert np.array_equal(rows, sampled_rows(num_rows, size, seed))
    for number, row in enumerate(rows.tolist()):
        assert num_rows * number // len(rows) <= row < num_rows * (number + 1) // len(rows)


def test_the_rows_of_a_seed_stay_the_same() -> None:
    assert sampled_rows(1_000_000, 4, 0).tolist() == [211_105, 439_488, 605_142, 814_729]
    assert sampled_rows(1_000_000, 4, 1).tolist() == [33_591, 461_858, 690_943, 813_767]


@pytest.fixture(params=["jsonl", "parquet", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": f"{number}", "image": f"{number // 10}.png"} for number in range(NUM_ROWS)
    ]
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet", row_group_size=20)
        return tmp_path / "m.parquet"
    path = tmp_path / "m"
    path.mkdir()
    for name, part in (("a.jsonl", rows[:30]), ("b.jsonl", rows[30:])):
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    if request.param == "folder":
        return path
    whole = tmp_path / "m.jsonl"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return whole


@pytest.mark.parametrize("limit", [None, 50])
def test_rows_are_those_of_the_whole_manifest(source: Path, limit: int | None) -> None:
    def opened(**sample: Any) -> Any:
        config = ManifestConfig(str(source), limit=limit, keep_inputs=True, **sample)
        manifest = open_manifest(config, SamplingParams(temperature=1.0))
        return manifest, manifest.scan()

    whole, _ = opened()
    manifest, info = opened(sample=12, sample_seed=3)
    wanted = sampled_rows(limit or NUM_ROWS, 12, 3).tolist()
    assert info.num_rows == 12
    everything = list(whole.rows())
    rows = list(manifest.rows())
    assert rows == [replace(everything[index], index=number) for number, index in enumerate(wanted)]
    assert [row.id for row in rows] == [str(index) for index in wanted]
    kept = [values["prompt"] for values in manifest.kept_inputs()]
    assert kept == [str(index) for index in wanted]
    assert manifest.last_image_uses is not None
    images = [index // 10 for index in wanted]
    assert [images[last] for last in manifest.last_image_uses] == images
    assert list(manifest.last_image_uses) == [
        max(place for place, image in enumerate(images) if image == mine) for mine in images
    ]


def test_a_stream_has_no_sample() -> None:
    with pytest.raises(ManifestError, match="--sample 5 needs the number of rows first"):
        open_manifest(ManifestConfig("-", sample=5), SamplingParams(), streaming=True)


def test_a_run_answers_its_sample_again_or_says_what_differs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(f'{{"prompt": "{number}"}}\n' for number in range(NUM_ROWS)))
    output = tmp_path / "out.parquet"
    run = ["run", str(manifest), "-m", str(MODEL), "-o", str(output)]
    run += ["--max-tokens", "1", "-q"]
    assert call([*run, "--sample", "7"]) == 0
    first = pq.read_table(output)
    assert first["id"].to_pylist() == [str(row) for row in sampled_rows(NUM_ROWS, 7, 0)]
    assert first["row_index"].to_pylist() == list(range(7))
    assert call([*run, "--sample", "7"]) == 0  # nothing to do
    capfd.readouterr()
    assert call([*run, "--sample", "7", "--sample-seed", "1"]) == 2
    assert "sample_seed: 0 -> 1" in capfd.readouterr().err
    assert call(run) == 2
    assert "sample: 7 -> none" in capfd.readouterr().err
    assert call([*run, "--sample", "14", "--incremental"]) == 0
    assert pq.read_table(output)["id"].to_pylist() == [
        str(row) for row in sampled_rows(NUM_ROWS, 14, 0)
    ]
