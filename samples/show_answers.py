"""Show the answers of a run over the sample manifest beside the expected ones.

python samples/show_answers.py samples/manifest.jsonl out/demo.parquet --exit-status 1

Rows of the manifest whose ``answer`` is null are planted errors. Fails unless every other answer
is right, every planted row is an error, and the run ended with the status that says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

SOME_ROWS_ARE_ERRORS = 1


def is_as_planned(row: dict[str, Any]) -> bool:
    if row["answer"] is None:
        return bool(row["status"] == "error")
    return bool(row["status"] == "ok" and row["text"].strip() == row["answer"])


def question(row: dict[str, Any]) -> str:
    """What a row of the manifest asks, without the words around it."""
    if "messages" in row:
        parts = row["messages"][-1]["content"]
        return " ".join(part["text"] for part in parts if part["type"] == "text")
    prompt: str = row["prompt"]
    return prompt.replace("<image>", "").removeprefix("USER:").removesuffix("ASSISTANT:").strip()


def print_rows(rows: list[dict[str, Any]], questions: list[str], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("row", justify="right")
    table.add_column("question", no_wrap=True)
    table.add_column("answer", overflow="fold")
    table.add_column("expected", overflow="fold")
    for row, asked in zip(rows, questions, strict=True):
        style = "green" if is_as_planned(row) else "bold red"
        answer = row["text"].strip() if row["status"] == "ok" else row["error_code"]
        expected = "an error, planted" if row["answer"] is None else row["answer"]
        table.add_row(str(row["row_index"]), asked, Text(answer, style), expected)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--exit-status", type=int, required=True, help="status of the run")
    arguments = parser.parse_args()

    console = Console(highlight=False)
    if not arguments.output.exists():
        console.print(f"the run wrote no {arguments.output} and ended with {arguments.exit_status}")
        return 1
    table = pq.read_table(arguments.output)
    prefix = (table.schema.metadata or {}).get(b"vlmbatch.column_prefix", b"").decode()
    own = {f"{prefix}{name}": name for name in ("row_index", "status", "text", "error_code")}
    rows = table.select([*own, "answer"]).rename_columns([*own.values(), "answer"]).to_pylist()
    lines = arguments.manifest.read_text().splitlines()
    print_rows(rows, [question(json.loads(line)) for line in lines], console)

    planted = sum(row["answer"] is None for row in rows)
    wrong = sum(not is_as_planned(row) for row in rows)
    error = "error" if planted == 1 else "errors"
    console.print(
        f"\n{len(rows) - planted} questions and {planted} planted {error}: "
        + ("all as planned." if wrong == 0 else f"[bold red]{wrong} not as planned.[/]")
    )
    if arguments.exit_status != SOME_ROWS_ARE_ERRORS:
        console.print(f"The run ended with {arguments.exit_status}; 1 was expected.")
        return 1
    console.print(
        "The run ended with exit status 1, which says: finished, and some rows are errors.\n"
        f"The answers are in {arguments.output}."
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
