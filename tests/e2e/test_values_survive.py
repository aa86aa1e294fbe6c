"""Columns of any type go through a run, its disk included, and come out as they went in."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrow_columns import as_json, columns
from fake_engine import FakeEngine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from model_folder import make_model_folder

import vlmbatch.jobs.run
import vlmbatch.session.replica
from vlmbatch.config import (
    FileDestination,
    ImageLoading,
    JobConfig,
    ManifestConfig,
    SamplingParams,
    SessionConfig,
    StdoutDestination,
)
from vlmbatch.durable.spill import Spill
from vlmbatch.manifest.stored_types import stored_type
from vlmbatch.stats import RunStats

ROWS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "fake")


@pytest.fixture(scope="module", autouse=True)
def everything_spills() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spill.__init__, "__kwdefaults__", {"loose": 0, "segment_bytes": 2000})
        patch.setattr(
            vlmbatch.session.replica, "load_engine", lambda *_: FakeEngine(lambda rows: None)
        )
        yield


def ran(config: JobConfig) -> bytes:
    """Answer all; what went to standard output."""
    stdout = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(buffer=stdout))
        vlmbatch.jobs.run.run(config, RunStats())
    return stdout.getvalue()


@settings(deadline=None, max_examples=35)
@given(drawn=st.lists(columns(ROWS), min_size=1, max_size=4))
def test_every_value_is_exact(
    drawn: list[pa.Array], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    # Rows of one image are read ahead, and wait.
    inputs = {"prompt": ["p"] * ROWS, "image": [b"no image"] * ROWS}
    table = pa.table({**inputs, **{f"c{number}": column for number, column in enumerate(drawn)}})
    try:
        pq.write_table(table, folder / "m.parquet", row_group_size=3)
    except pa.ArrowException:
        assume(False)  # no manifest can hold it
    given_columns = pq.read_table(folder / "m.parquet").drop_columns([*inputs])
    config = JobConfig(
        SessionConfig(str(model), image_loading=ImageLoading(workers=0)),
        ManifestConfig(str(folder / "m.parquet")),
        FileDestination(folder / "out.parquet"),
        SamplingParams(max_tokens=8),
    )
    warnings: list[logging.LogRecord] = []
    handler: Any = logging.Handler()
    handler.emit = warnings.append
    logging.getLogger("vlmbatch").addHandler(handler)
    try:
        ran(config)
        lines = [
            json.loads(line)
            for line in ran(replace(config, destination=StdoutDestination())).splitlines()
        ]
    finally:
        logging.getLogger("vlmbatch").removeHandler(handler)
    assert warnings == []
    out = pq.read_table(folder / "out.parquet")
    for name in given_columns.column_names:
        column = given_columns[name].combine_chunks()
        found = out[name].combine_chunks()
        assert found.type == stored_type(column.type)
        for row in range(ROWS):
            assert as_json(found[row]) == as_json(column[row])
            assert lines[row][name] == as_json(column[row])
        if found.type == column.type:
            assert found.equals(column)
