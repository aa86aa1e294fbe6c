"""A page that shows the answers of an output beside their prompts and images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.durable.durable_file import FILES, DurableFile, removed_on_failure, reported
from vlmbatch.durable.run_paths import temporary_path
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.output.answers import Answers, open_answers
from vlmbatch.report.figures import COUNTED, Figures, pace_figures
from vlmbatch.report.inputs import InputReader, RowInput, image_limits, record_of
from vlmbatch.report.page import page
from vlmbatch.report.rows import answer_data, extra_data, prompt_text, settings_rows, value_text
from vlmbatch.report.thumbnails import DecodedThumbnails
from vlmbatch.stats import RunStats

_PICTURE_BYTES = 24 * 2**20  # of all together, as text
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class ReportConfig:
    """``rows``: that the page shows at most. ``manifest``: with the prompts and images, in the
    place of the one that the run is known to have read."""

    rows: int = 500
    manifest: str | None = None
    images: bool = True


@dataclass(frozen=True, slots=True)
class Written:
    """What a page has become: rows on it, of how many, and its size."""

    shown: int
    rows: int
    num_bytes: int


def report(output: Path, destination: Path, config: ReportConfig, stats: RunStats) -> Written:
    """Write the page of ``output``. Holds the rows shown and two bytes of each other.

    Raises:
        UsageError: there is no finished output, or no such manifest.
        OutputError: reading or writing failed.
    """
    stats.stage = "counting answers"
    with open_answers(output) as answers:
        figures = count(answers, stats)
        wanted = figures.choose(config.rows)
        record = record_of(output)
        rows, notes = shown_rows(
            answers, wanted, InputReader(record, config.manifest), record, config, stats
        )
        data = {
            "lead": _lead(figures, record),
            "notes": [*_about_rows(len(rows), figures.num_rows), *notes],
            "figures": [*pace_figures(_pace(record)), *figures.histograms()],
            "tables": list(_tables(figures, rows, answers, record)),
            "columns": sorted({name for row in rows for name, _ in row["extra"]}),
            "outputs": [{"name": output.name}],
            "rows": rows,
        }
    return Written(len(rows), figures.num_rows, write_page(destination, output.name, data, stats))


def count(answers: Answers, stats: RunStats) -> Figures:
    """The figures of all rows."""
    stats.rows_total, stats.work_started = answers.num_rows, time.monotonic()
    figures = Figures()
    for table, _ in answers.blocks(COUNTED):
        figures.add(table)
        stats.rows_done += table.num_rows
    return figures


def shown_rows(
    answers: Answers,
    wanted: NDArray[np.int64],
    inputs: InputReader,
    record: RunRecord | None,
    config: ReportConfig,
    stats: RunStats,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows with these numbers as the page takes them, and what is to be said of them."""
    begin_rows(stats, "reading the rows shown", len(wanted))
    rows: dict[int, dict[str, Any]] = {}
    ids: dict[int, str] = {}
    with _pictures(record) as pictures:

        def fill(row: dict[str, Any], asked: RowInput) -> None:
            row["prompt"] = None if asked.prompt is None else prompt_text(asked.prompt)
            if config.images:
                row["images"] = pictures.of(asked.images)
                if asked.problem is not None:
                    row["images"].append(value_text(asked.problem))
            stats.rows_done += 1

        for found in answers.rows(wanted):
            number = int(found.result["row_index"])
            ids[number] = found.result["id"]
            row = rows[number] = {
                "row": number,
                "id": found.result["id"],
                "prompt": None,
                "images": [],
                "answers": [answer_data(found.result)],
                "extra": extra_data(found.extra, inputs.names),
            }
            if inputs.is_kept_in(found.extra):
                fill(row, inputs.kept(found.extra))
                del ids[number]
        notes = []
        stats.stage = "reading prompts and images"
        for number, asked in inputs.from_manifest(ids):
            fill(rows[number], asked)
        if inputs.note is not None:
            notes.append(inputs.note)
        if pictures.num_left_out:
            notes.append(
                f"{pictures.num_left_out:,} pictures are left out: those shown take "
                f"{pictures.num_bytes / 2**20:.0f} MiB."
            )
    return list(rows.values()), notes


def begin_rows(stats: RunStats, stage: str, total: int | None) -> None:
    """Let the bar begin again, with another total."""
    stats.stage, stats.rows_total, stats.rows_done = stage, total, 0


def write_page(destination: Path, title: str, data: dict[str, Any], stats: RunStats) -> int:
    """Put the page in its place, whole; returns its size in bytes.

    Raises:
        OutputError: it cannot be written.
    """
    begin_rows(stats, "writing the page", None)
    content = page(title, data).encode(errors="replace")
    temporary = temporary_path(destination)
    with reported(destination), DurableFile(temporary) as file, removed_on_failure(temporary):
        file.write(content)
        file.sync()
        FILES.replace(temporary, destination)
    stats.finish()
    return len(content)


@contextmanager
def _pictures(record: RunRecord | None) -> Iterator[DecodedThumbnails]:
    with closing(DecodedThumbnails(image_limits(record), _PICTURE_BYTES)) as pictures:
        yield pictures


def _lead(figures: Figures, record: RunRecord | None) -> str:
    ok, failed = (sum(figures.counts(status).values()) for status in ("ok", "error"))
    errors = "1 error" if failed == 1 else f"{failed:,} errors"
    text = f"{figures.num_rows:,} rows: {ok:,} answered, {errors}"
    if record is not None:
        started = record.started[:16].replace("T", " ")
        text += f" · {record.about.get('model', 'a model')} · {started} UTC"
    return text


def _pace(record: RunRecord | None) -> list[tuple[float, int, int]]:
    return [] if record is None else record.about.get("pace", [])


def _about_rows(shown: int, total: int) -> Iterator[str]:
    if shown < total:
        yield (
            f"{shown:,} of {total:,} rows are on this page: spread over all of them, with some of "
            "every error and finish reason. The figures count all rows; search and filters look "
            "at the rows on this page."
        )


def _tables(
    figures: Figures, rows: list[dict[str, Any]], answers: Answers, record: RunRecord | None
) -> Iterator[dict[str, Any]]:
    total = max(1, figures.num_rows)
    reasons, codes = figures.counts("ok"), figures.counts("error")
    yield {
        "title": "Finish reasons and errors",
        "rows": [
            [name, number, {"share": number / total}]
            for counts in (reasons, codes)
            for name, number in counts.items()
        ],
    }
    if codes:
        examples = [
            [code if n == 0 else "", f"row {row['row']:,} (id {row['id']}): {answer['message']}"]
            for code in codes
            for n, (row, answer) in enumerate(_of_code(rows, code)[:_EXAMPLES])
        ]
        yield {"title": "Errors", "rows": examples, "wide": True}
    settings: dict[str, Any] = {}
    if record is not None:
        settings = {**record.about, "started": record.started, "vlmbatch": record.version}
        settings |= record.settings
        settings = {k: v for k, v in settings.items() if k not in ("pace", "options")}
    elif answers.metadata:
        settings = {k: v for k, v in answers.metadata.items() if k.startswith("vlmbatch.")}
    if settings:
        yield {
            "title": "Settings of the run",
            "rows": settings_rows(settings),
            "folded": True,
            "wide": True,
        }


def _of_code(rows: list[dict[str, Any]], code: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(row, row["answers"][0]) for row in rows if row["answers"][0]["code"] == code]
