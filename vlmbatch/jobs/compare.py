"""Two outputs beside each other: which rows differ, how many agree, and by what column."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.jobs.report import (
    ReportConfig,
    begin_rows,
    shown_rows,
    write_page,
)
from vlmbatch.manifest.sample import sampled_rows
from vlmbatch.output.answers import Answers, open_answers
from vlmbatch.output.matching import COMPARED, ColumnValues, Matching, RowDigests, match
from vlmbatch.report.inputs import InputReader, record_of
from vlmbatch.report.rows import NO_ANSWER, answer_data
from vlmbatch.stats import RunStats

_AGREEING_SHARE = 10  # of the rows on a page one in so many is of those that agree


@dataclass(frozen=True, slots=True)
class ColumnAgreement:
    """Of rows with one value of a column: how many, and how many of these agree."""

    column: str
    value: str
    rows: int
    same: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows by id. ``same``: with one answer, or one error; ``differ``: two answers that differ.

    ``left_fails`` and ``right_fails``: an error in this output, an answer in the other;
    ``errors_differ``: two errors of different codes. ``columns``: the least agreement first.
    """

    joined: int
    same: int
    differ: int
    left_fails: int
    right_fails: int
    errors_differ: int
    only_left: int
    only_right: int
    columns: tuple[ColumnAgreement, ...]
    examples: tuple[tuple[str, str, str], ...]  # id, left, right
    page_bytes: int | None = None

    @property
    def agreement(self) -> float:
        """The share of joined rows that are the same; 1 of none."""
        return self.same / self.joined if self.joined else 1.0

    @property
    def is_same(self) -> bool:
        return self.same == self.joined and not self.only_left and not self.only_right


def compare(
    left: Path,
    right: Path,
    page: Path | None,
    config: ReportConfig,
    stats: RunStats,
    num_examples: int = 3,
) -> Comparison:
    """Join two outputs by id and compare their answers; write ``page`` where one is wanted.

    Memory: 18 bytes a row of each, as many more for sorting, and a byte for each column with few
    values.

    Raises:
        UsageError: one is no finished output.
        OutputError: reading or writing failed.
    """
    with open_answers(left) as first, open_answers(right) as second:
        left_rows = _digests(first, f"reading {left.name}", stats)
        right_rows = _digests(second, f"reading {right.name}", stats)
        found = match(left_rows, right_rows)
        columns = tuple(_by_column(left_rows.columns, found))
        differing = np.flatnonzero(~found.same)
        chosen = differing[sampled_rows(len(differing), num_examples, 0)]
        examples = tuple(_examples(first, second, found, chosen))
        ok = found.left_ok, found.right_ok
        result = Comparison(
            joined=len(found.left),
            same=int(found.same.sum()),
            differ=int((~found.same & ok[0] & ok[1]).sum()),
            left_fails=int((~ok[0] & ok[1]).sum()),
            right_fails=int((ok[0] & ~ok[1]).sum()),
            errors_differ=int((~found.same & ~ok[0] & ~ok[1]).sum()),
            only_left=len(found.only_left),
            only_right=len(found.only_right),
            columns=columns,
            examples=examples,
        )
        if page is None:
            stats.finish()
            return result
        size = _write_page(page, (left, first), (right, second), found, result, config, stats)
    return Comparison(**{**_fields(result), "page_bytes": size})


def _fields(result: Comparison) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Comparison.__dataclass_fields__}


def _digests(answers: Answers, stage: str, stats: RunStats) -> RowDigests:
    begin_rows(stats, stage, answers.num_rows)
    stats.work_started = time.monotonic()
    rows = RowDigests.of_columns(answers.grouping)
    for results, extra in answers.blocks(COMPARED, [*rows.columns]):
        rows.add(results, extra)
        stats.rows_done += results.num_rows
    return rows


def _by_column(columns: dict[str, ColumnValues], found: Matching) -> Iterator[ColumnAgreement]:
    """Of columns whose values divide the rows into groups, each value's agreement."""
    lines = []
    for name, column in columns.items():
        # A column of which most values are of one row tells no more than the rows themselves.
        if column.is_varied or not 2 <= len(column.values) <= len(column.codes) / 2:
            continue
        codes = np.frombuffer(column.codes, np.uint8)[found.left]
        rows = np.bincount(codes, minlength=len(column.values))
        same = np.bincount(codes[found.same], minlength=len(column.values))
        lines += [
            ColumnAgreement(name, value, int(rows[code]), int(same[code]))
            for value, code in column.values.items()
            if rows[code]
        ]
    yield from sorted(lines, key=lambda line: (line.same / line.rows, -line.rows))


def _examples(
    first: Answers, second: Answers, found: Matching, chosen: NDArray[np.int64]
) -> Iterator[tuple[str, str, str]]:
    lefts = {row.number: row.result for row in first.rows(found.left[chosen])}
    rights = {row.number: row.result for row in second.rows(np.sort(found.right[chosen]))}
    for place in chosen.tolist():
        one, other = lefts[int(found.left[place])], rights[int(found.right[place])]
        yield (
            one["id"],
            *(
                row["text"] if row["status"] == "ok" else f"({row['error_code']})"
                for row in (one, other)
            ),
        )


def _write_page(
    page: Path,
    left: tuple[Path, Answers],
    right: tuple[Path, Answers],
    found: Matching,
    result: Comparison,
    config: ReportConfig,
    stats: RunStats,
) -> int:
    """Rows that differ, and some that agree, side by side."""
    differing, agreeing = (np.flatnonzero(mask) for mask in (~found.same, found.same))
    num_agreeing = max(config.rows // _AGREEING_SHARE, config.rows - len(differing))
    shown = (
        differing[sampled_rows(len(differing), config.rows - num_agreeing, 0)],
        agreeing[sampled_rows(len(agreeing), num_agreeing, 0)],
    )
    chosen = np.sort(np.concatenate(shown))
    record = record_of(left[0])
    inputs = InputReader(record, config.manifest)
    rows, notes = shown_rows(left[1], found.left[chosen], inputs, record, config, stats)
    partners = found.right[chosen]
    order = np.argsort(partners)
    answers = [NO_ANSWER] * len(rows)
    for place, row in zip(order.tolist(), right[1].rows(partners[order]), strict=True):
        answers[place] = answer_data(row.result)
    for row_data, answer, place in zip(rows, answers, chosen.tolist(), strict=True):
        row_data["answers"].append(answer)
        row_data["extra"].insert(0, ["agreement", "same" if found.same[place] else "differs"])
    if len(rows) < result.joined:
        notes.insert(
            0,
            f"{len(rows):,} of {result.joined:,} rows are on this page: of those that differ, "
            "spread over all of them, and some that agree.",
        )
    names = [f"A: {left[0].name}", f"B: {right[0].name}"]
    data = {
        "lead": ": ".join(lead(result)),
        "notes": notes,
        "figures": [],
        "tables": list(_tables(result)),
        "columns": sorted({name for row in rows for name, _ in row["extra"]}),
        "outputs": [{"name": name} for name in names],
        "rows": rows,
    }
    return write_page(page, f"{left[0].name} and {right[0].name}", data, stats)


def lead(result: Comparison) -> tuple[str, str]:
    """How many rows are in both, and what to say of them."""
    if not result.joined and not result.is_same:
        return "no row is in both", "rows are joined by their ids, and none has one of the other's"
    return f"{result.joined:,} rows are in both", f"{result.agreement:.2%} are the same"


def outcome_lines(result: Comparison) -> list[tuple[str, int]]:
    """The counts with their names, those that are always of interest and others above 0."""
    lines = [
        ("same answer or error", result.same),
        ("answers differ", result.differ),
        ("error in A alone", result.left_fails),
        ("error in B alone", result.right_fails),
        ("errors differ", result.errors_differ),
        ("only in A", result.only_left),
        ("only in B", result.only_right),
    ]
    return [line for place, line in enumerate(lines) if place < 2 or line[1]]


def _tables(result: Comparison) -> Iterator[dict[str, Any]]:
    total = max(1, result.joined + result.only_left + result.only_right)
    yield {
        "title": "Agreement",
        "rows": [[name, count, {"share": count / total}] for name, count in outcome_lines(result)],
    }
    if result.columns:
        yield {
            "title": "Agreement by column",
            "head": ["column", "value", "rows", "same", "share"],
            "rows": [
                [
                    line.column,
                    line.value[:200],
                    line.rows,
                    line.same,
                    {"share": line.same / line.rows},
                ]
                for line in result.columns[:100]
            ],
            "wide": True,
        }
