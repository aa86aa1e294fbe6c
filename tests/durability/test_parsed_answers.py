"""Runs with ``--parse-json`` that are killed: what they write in the end is what others write."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from resumable_runs import WITH_ERRORS, read_rows, write_manifest

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["count", "tags"],
    "additionalProperties": False,
}


def test_columns_of_fields_are_the_same_after_kills(new_run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    manifest = write_manifest(tmp_path / "m.jsonl", 60)
    run, undisturbed = new_run(manifest), new_run(manifest)
    for each in (run, undisturbed):
        each.arguments += ["--json-schema", schema, "--parse-json", "--max-tokens", 60]
    assert undisturbed.attempt() == WITH_ERRORS
    assert run.attempt(crash_at="journal.acknowledged:2") == -signal.SIGKILL
    assert run.attempt(crash_at="output.synced:1") == -signal.SIGKILL
    assert run.attempt() == WITH_ERRORS
    run.check_finished(read_rows(undisturbed.output))
    fields = pq.read_schema(run.output)
    assert fields.equals(pq.read_schema(undisturbed.output))
    assert [fields.field(name).type for name in ("count", "tags")] == [
        *(pa.int64(), pa.list_(pa.string()))
    ]
    rows = [row for row in read_rows(run.output) if row["finish_reason"] == "stop"]
    assert {len(row["tags"]) for row in rows} == {0, 1, 2} and len({r["count"] for r in rows}) > 9
    assert all(row["json_error"] is None for row in rows)
