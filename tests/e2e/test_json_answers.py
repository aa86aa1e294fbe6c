"""``--json-schema``, ``--regex`` and ``--parse-json``: answers of a shape, and their fields."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import real_command
from in_process import call

from vlmbatch import LLM, SamplingParams

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "tiny-llava"
QWEN = SAMPLES / "tiny-qwen-vl"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
        "box": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]},
        "more": {"type": "boolean"},
    },
    "required": ["colour", "count", "tags", "box"],
    "additionalProperties": False,
}
SCHEMA["properties"]["box"]["additionalProperties"] = False
TYPES = [pa.string(), pa.int64(), pa.list_(pa.string()), pa.string(), pa.bool_()]
# Its definition is nothing but itself: no answer follows it.
ENDLESS = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
FIELDS = tuple(SCHEMA["properties"])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"USER: What is {n}? ASSISTANT:", "mine": n, **more} for n in range(count)]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def run(manifest: Path, output: Path, *options: object) -> int:
    return call(["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0, *options])


def read(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


def test_fields_are_columns(tmp_path: Path, schema: Path) -> None:
    """Of answers that are whole, cut, of a shape of their own, and of error rows."""
    rows = prompts(5)
    rows[1]["max_tokens"] = 20
    rows[2]["regex"] = "[0-9]{3}"
    rows[3]["temperature"] = -1
    rows[4]["json_schema"] = {**SCHEMA, "required": [*FIELDS]}
    output = tmp_path / "out.parquet"
    asked = ("--json-schema", schema, "--parse-json", "--max-tokens", 200)
    assert run(write(tmp_path / "m.jsonl", rows), output, *asked) == 1
    table = pq.read_table(output)
    assert [table.schema.field(name).type for name in FIELDS] == TYPES
    whole, cut, other, bad, all_fields = table.to_pylist()
    nothing = dict.fromkeys(FIELDS)
    for row in (whole, all_fields):
        answer = json.loads(row["text"])
        assert {**nothing, **answer} == {
            name: json.loads(row[name]) if name == "box" else row[name] for name in FIELDS
        }
        assert row["finish_reason"] == "stop" and row["json_error"] is None
    assert whole["more"] is None or "more" in whole["text"]
    assert isinstance(all_fields["more"], bool) and all_fields["mine"] == 4
    assert (cut["finish_reason"], {name: cut[name] for name in FIELDS}) == ("length", nothing)
    assert cut["json_error"].startswith("cut after 20 tokens: ")
    assert re.fullmatch("[0-9]{3}", other["text"])
    assert other["json_error"] == "not a JSON object, but int" and other["count"] is None
    assert bad["error_code"] == "sampling_invalid" and bad["json_error"] is bad["colour"] is None


def test_resumed_incremental_and_divided_runs_have_the_same_table(
    tmp_path: Path, schema: Path
) -> None:
    answers = ("--json-schema", schema, "--column-prefix", "own_")
    asked = (*answers, "--parse-json")
    manifest, whole = write(tmp_path / "m.jsonl", prompts(6)), tmp_path / "whole.parquet"
    assert run(manifest, whole, *answers) == 0
    texts = [row["own_text"] for row in read(whole)]
    assert run(manifest, whole, *asked) == 2
    assert run(manifest, whole, *asked, "--incremental") == 0
    expected = read(whole)
    assert [row["own_text"] for row in expected] == texts
    assert expected[0].keys() >= {"own_text", "own_json_error", *FIELDS}
    # Another row at the front: what is kept is read as any other.
    first = {"prompt": "USER: Hi ASSISTANT:", "mine": 7}
    write(manifest, [first, *prompts(6)])
    assert run(manifest, whole, *asked, "--incremental") == 0
    changed = read(whole)
    assert [row["count"] for row in changed[1:]] == [row["count"] for row in expected]
    assert changed[1:] == [
        {**row, "own_row_index": n, "own_id": str(n)} for n, row in enumerate(expected, 1)
    ]
    parts = tmp_path / "parts"
    for part in ("0/2", "1/2"):
        assert run(manifest, parts, *asked, "--shard", part) == 0
    assert call(["merge", parts, "-o", tmp_path / "merged.parquet", "-q"]) == 0
    assert read(tmp_path / "merged.parquet") == changed
    shards = tmp_path / "shards"
    assert run(manifest, shards, *asked, "--shard-rows", 4) == 0
    assert [row for path in sorted(shards.glob("*.parquet")) for row in read(path)] == changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regex", "a("], "--regex cannot be used: unclosed group"),
        (["--regex", "(?=a)b"], "look-around, including look-ahead and look-behind, is not"),
        (["--json-schema", "none.json"], "must be a file with a JSON schema: none.json: No such"),
        (["--json-schema", '{"a": '], "--json-schema is not JSON"),
        (["--json-schema", '{"type": 3}'], "--json-schema cannot be used"),
        (["--json-schema", "{}", "--regex", "a"], "--json-schema and --regex cannot be combined"),
        (["--choices", "a,b", "--regex", "a"], "--choices and --regex cannot be combined"),
        (
            ["--json-schema", "{}", "--ignore-eos"],
            "--ignore-eos cannot be combined with --json-schema",
        ),
        (["--parse-json"], "add --json-schema"),
        (["--parse-json", "--json-schema", "{}"], "at its top level --json-schema has none"),
        (
            ["--parse-json", "--json-schema", '{"properties": {"id": {}, "text": {}}}'],
            "the output has columns id, text of its own: give these other names with --column-pre",
        ),
        (
            ["--parse-json", "--json-schema", '{"properties": {"mine": {}}}'],
            'm.jsonl:1: column "mine" has the name of a property of --json-schema',
        ),
        (
            ["--parse-json", "--keep-inputs", "--json-schema", '{"properties": {"prompt": {}}}'],
            "--parse-json and --keep-inputs both write columns prompt",
        ),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.parquet"
    assert run(write(tmp_path / "m.jsonl", prompts(1)), output, *options) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_names_of_properties_that_the_output_has_too(tmp_path: Path) -> None:
    """Its own columns get others, and properties keep theirs."""
    schema = '{"properties": {"text": {"const": "x"}}, "required": ["text"]}'
    schema = schema.replace("{", '{"type": "object", "additionalProperties": false, ', 1)
    output = tmp_path / "out.parquet"
    asked = ("--parse-json", "--json-schema", schema, "--column-prefix", "own_")
    assert run(write(tmp_path / "m.jsonl", prompts(1)), output, *asked) == 0
    (row,) = read(output)
    assert (row["text"], row["own_json_error"], row["own_status"]) == ("x", None, "ok")


@pytest.mark.parametrize(("model", "text"), [(MODEL, "USER: Hi ASSISTANT:"), (QWEN, "Hi")])
def test_the_command_in_a_pipe(model: Path, text: str, schema: Path, tmp_path: Path) -> None:
    """Fields are there as the answer has them; a row that no answer follows is an error row."""
    rows: list[dict[str, Any]] = [{"prompt": text}, {"prompt": text, "json_schema": ENDLESS}]
    manifest = write(tmp_path / "m.jsonl", rows)
    options = ("-m", model, "-o", "-", "-q", "--json-schema", schema, "--parse-json")
    done = real_command.run("run", manifest, *options)
    assert done.returncode == 1, done.stderr
    whole, endless = map(json.loads, done.stdout.splitlines())
    assert whole["box"] == {"x": 1} and whole["colour"] in ("red", "green", "blue")
    assert endless["error_code"] == "sampling_invalid"
    assert endless["error_message"].endswith("no token of the vocabulary may come next")


def test_transformers_answers_the_same(tmp_path: Path, schema: Path) -> None:
    rows = [*prompts(3), {"prompt": "USER: Hi ASSISTANT:", "json_schema": ENDLESS, "mine": 9}]
    manifest = write(tmp_path / "m.jsonl", rows)
    tables = []
    for engine in ("vlmbatch", "transformers"):
        output = tmp_path / f"{engine}.parquet"
        asked = ("--json-schema", schema, "--parse-json", "--engine", engine)
        assert run(manifest, output, *asked) == 1
        tables.append(read(output))
    assert tables[0] == tables[1]
    assert [row["status"] for row in tables[0]] == ["ok"] * 3 + ["error"]


def test_from_python() -> None:
    shapes = [SamplingParams(json_schema=SCHEMA, max_tokens=99), SamplingParams(regex="x{3}")]
    with LLM(MODEL, image_workers=0) as llm:
        first, second = llm.generate(["USER: Hi ASSISTANT:"] * 2, shapes)
    assert json.loads(first.outputs[0].text).keys() <= {*FIELDS}
    assert second.outputs[0].text == "xxx"
