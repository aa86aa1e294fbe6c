"""``vlmbatch compare``: outputs joined by id, in whatever order their rows are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headless import rendered
from hypothesis import given
from hypothesis import strategies as st
from in_process import call

from vlmbatch.jobs.compare import compare
from vlmbatch.jobs.report import ReportConfig
from vlmbatch.manifest.schema import RESULT_SCHEMA, output_schema
from vlmbatch.output.matching import RowDigests, match
from vlmbatch.stats import RunStats

# Answers by id; None: an error.
ANSWERS = st.dictionaries(
    st.integers(0, 40).map(str), st.sampled_from(["yes", "no", "", None]), max_size=30
)


def table(answers: dict[str, str | None], **extra: list[Any]) -> pa.Table:
    rows = [
        {
            "row_index": n,
            "id": row_id,
            "status": "error" if text is None else "ok",
            "text": text,
            "error_code": "engine_error" if text is None else None,
            "error_message": "it broke" if text is None else None,
        }
        for n, (row_id, text) in enumerate(answers.items())
    ]
    made = pa.Table.from_pylist(rows, RESULT_SCHEMA)
    for name, values in extra.items():
        made = made.append_column(name, pa.array(values))
    return made


def digests(answers: dict[str, str | None]) -> RowDigests:
    rows = RowDigests.of_columns([])
    rows.add(table(answers), pa.table({}))
    return rows


@given(ANSWERS, ANSWERS)
def test_rows_are_joined_by_their_ids(
    left: dict[str, str | None], right: dict[str, str | None]
) -> None:
    found = match(digests(left), digests(right))
    lefts, rights = list(left), list(right)
    joined = [
        (lefts[one], rights[other])
        for one, other in zip(found.left.tolist(), found.right.tolist(), strict=True)
    ]
    assert joined == [(row, row) for row in lefts if row in right]
    assert found.same.tolist() == [left[row] == right[row] for row, _ in joined]
    assert [lefts[row] for row in found.only_left] == [row for row in lefts if row not in right]
    assert [rights[row] for row in found.only_right] == [row for row in rights if row not in left]


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """100 rows, of which every tenth has another answer; the second in the other order."""
    one = {str(n): f"answer {n}" for n in range(100)}
    other = {row_id: f"{text}!" if int(row_id) % 10 == 0 else text for row_id, text in one.items()}
    kinds = ["tens" if n % 10 == 0 else "rest" for n in range(100)]
    left, right = tmp_path / "a.parquet", tmp_path / "b.parquet"
    columns: dict[str, list[Any]] = {
        "kind": kinds,
        "note": [f"{n}" for n in range(100)],
        "always": [1] * 100,
    }
    pq.write_table(table(one, **columns), left, row_group_size=30)
    pq.write_table(table(dict(reversed(other.items()))), right, row_group_size=7)
    return left, right


def test_agreement_is_told_by_column(outputs: tuple[Path, Path]) -> None:
    found = compare(*outputs, None, ReportConfig(), RunStats())
    assert (found.joined, found.same, found.differ, found.is_same) == (100, 90, 10, False)
    # A column of one value tells nothing, and one of a hundred is not told apart.
    lines = [(line.column, line.value, line.rows, line.same) for line in found.columns]
    assert lines == [("kind", "tens", 10, 0), ("kind", "rest", 90, 90)]
    for row_id, one, other in found.examples:
        assert (one, other) == (f"answer {row_id}", f"answer {row_id}!")


def test_figures_of_answers_are_no_kinds_of_rows(tmp_path: Path) -> None:
    """Each log-probability and confidence would be a line of its own."""
    answers: dict[str, str | None] = {"1": "yes", "2": "no", "3": "yes", "4": "no"}
    schema = output_schema(pa.schema([]), asked=("logprobs", "choice", "confidence", "choices"))
    made = table(answers)
    for field in list(schema)[len(RESULT_SCHEMA) :]:
        values: list[Any] = [[], None]
        if field.name in ("choice", "confidence"):
            values = ["yes", "no"] if field.name == "choice" else [0.5, 0.75]
        made = made.append_column(field, pa.array(values * 2, field.type))
    made = made.append_column("note", pa.array(["a", "b", "c", "c"]))  # nearly one a row
    pq.write_table(made, tmp_path / "a.parquet")
    pq.write_table(table(answers), tmp_path / "b.parquet")
    found = compare(
        tmp_path / "a.parquet", tmp_path / "b.parquet", None, ReportConfig(), RunStats()
    )
    assert [(line.column, line.value) for line in found.columns] == [
        ("choice", "yes"),
        ("choice", "no"),
    ]


def test_the_page_has_both_side_by_side(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call(["compare", *outputs, "-o", page, "-q", "--rows", 20]) == 1
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    rows = json.loads(found[1])["rows"]
    assert len(rows) == 20
    assert sum(["agreement", "differs"] in row["extra"] for row in rows) == 10
    for row in rows:
        one, other = row["answers"]
        assert one["text"] == f"answer {row['id']}" == other["text"].rstrip("!")
    shown = rendered(page, tmp_path / "profile")
    assert shown.count("<mark>!</mark>") == 10
    assert "A: a.parquet" in shown


def test_exit_status_tells_whether_all_is_the_same(
    outputs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left, right = outputs
    assert call(["compare", left, left, "-q"]) == 0
    assert call(["compare", left, right, "--json"]) == 1
    captured = capfd.readouterr()
    assert json.loads(captured.out)["agreement"] == 0.9
    pq.write_table(table({"7": None, "8": "answer 8", "new": "x"}), tmp_path / "c.parquet")
    assert call(["compare", left, tmp_path / "c.parquet"]) == 1
    message = capfd.readouterr().err
    assert re.search(r"error in B alone +1\n", message)
    assert re.search(r"only in A +98\n", message)
    assert re.search(r"only in B +1\n", message)
    assert "A: answer 7\n  B: (engine_error)" in message
    pq.write_table(table({"new": "x"}), tmp_path / "d.parquet")
    assert call(["compare", left, tmp_path / "d.parquet"]) == 1
    message = capfd.readouterr().err
    assert "no row is in both: rows are joined by their ids" in message and "%" not in message


def test_what_cannot_be_compared_is_refused(
    outputs: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    left, _ = outputs
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "other.parquet")
    (tmp_path / "rows.csv").write_text("id,prompt\n")
    for right, message in (
        ("missing.parquet", "no such output"),
        ("other.parquet", "columns of"),
        ("rows.csv", "is no output of a run"),
    ):
        assert call(["compare", left, tmp_path / right]) == 2
        assert message in capfd.readouterr().err
    assert call(["compare", left, left, "-o", left]) == 2
    assert "ends in .html" in capfd.readouterr().err
