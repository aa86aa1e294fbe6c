"""CSV and TSV manifests."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.text_columns import TextColumn
from vlmbatch.types import Row

Make = Callable[..., Manifest]


def rows_of(manifest: Manifest) -> list[Row]:
    manifest.scan()
    return list(manifest.rows())


def test_a_row_a_record(manifest: Make) -> None:
    text = 'id,prompt,image\n007,"Who, what\nand ""why""?",a.jpg\n\n2,7,\n'
    for line_end in ("\n", "\r\n"):
        content = b"\xef\xbb\xbf" + text.replace("\n", line_end).encode()
        first, second = rows_of(manifest(content, name="m.csv"))
        assert first.id == "007" and first.line == 2
        assert first.prompt == f'Who, what{line_end}and "why"?'
        assert Path(first.images[0].path or "").name == "a.jpg"
        assert (second.id, second.prompt, second.images, second.line) == ("2", "7", (), 5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.tsv", b"prompt\tx\na, b\t1\n"),
        ("m.CSV", b"prompt;x\na, b;1\n"),
        ("m.csv.gz", gzip.compress(b'prompt,x\n"a, b",1', mtime=0)),
        ("m.tsv.zst", zstandard.compress(b"prompt\tx\n\n \na, b\t1")),
    ],
)
def test_kinds(manifest: Make, name: str, content: bytes) -> None:
    (row,) = rows_of(manifest(content, name=name))
    assert (row.error, row.prompt, row.extra) == (None, "a, b", {"x": 1})


def test_a_cell_of_blanks_in_quotes_is_a_row(manifest: Make) -> None:
    rows = rows_of(manifest(b'prompt\n"  "\n \n\n"\n"\n""\nend\n', name="m.csv"))
    assert [(row.line, row.prompt) for row in rows] == [(2, "  "), (5, "\n"), (7, ""), (8, "end")]


def test_columns_have_types(manifest: Make) -> None:
    text = (
        "prompt,int,float,bool,zeros,large,mixed,none,version\n"
        'p,1,1.5,true,007,9007199254740993,1,,"1.2"\n'
        "p,,2,False,1,1.5,true,,1.2.3\n"
    )
    opened = manifest(text.encode(), name="m.csv")
    schema = opened.scan().extra_schema
    types = dict(zip(schema.names, schema.types, strict=True))
    string = pa.string()
    assert types == {
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        **dict.fromkeys(("zeros", "large", "mixed", "none", "version"), string),
    }
    first, second = (row.extra for row in opened.rows())
    assert pa.Table.from_pylist([first, second], schema).num_rows == 2
    assert (first["int"], second["int"], second["float"]) == (1, None, 2.0)
    assert (first["bool"], second["bool"]) == (True, False)
    assert (first["zeros"], first["large"], second["mixed"]) == ("007", "9007199254740993", "true")


def test_choices_are_a_list_only_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('prompt,choices\np,"[""yes, sir"", ""no""]"\np,"a,b"\n')
    config = ManifestConfig(str(path))
    one, two = rows_of(open_manifest(config, SamplingParams(choices=("x", "y"))))
    assert one.sampling is not None and two.sampling is not None
    assert (one.sampling.choices, two.sampling.choices) == (("yes, sir", "no"), ("a", "b"))
    one, two = rows_of(open_manifest(config, SamplingParams()))
    assert (one.extra, two.extra) == ({"choices": '["yes, sir", "no"]'}, {"choices": "a,b"})


@given(st.lists(st.from_regex(r"-?[0-9]{0,20}(\.[0-9]{0,20})?(e-?[0-9]{1,4})?", fullmatch=True)))
def test_a_columns_values_are_of_its_type(cells: list[str]) -> None:
    column = TextColumn("x")
    for cell in cells:
        column.add(cell)
    values = pa.array([column.value(cell) for cell in cells], column.type).to_pylist()
    for cell, value in zip(cells, values, strict=True):
        assert value is None if not cell else cell in (value, str(value)) or float(cell) == value


def test_inputs_are_read_as_what_they_are(manifest: Make) -> None:
    text = (
        "prompt;image;max_tokens;stop;messages\n"
        '5;"[""a.jpg"", ""b.jpg""]";7;END;\n'
        ';;x;"[""a"", ""b""]";\n'
        ';;;;"[{""role"": ""user"", ""content"": ""hi""}]"\n'
        ';;;"[1";\n'
    )
    one, two, _, four = rows_of(manifest(text.encode(), name="m.csv"))
    assert one.prompt == "5" and len(one.images) == 2
    assert one.sampling is not None and one.sampling.max_tokens == 7
    assert one.sampling.stop == ("END",)
    assert two.error is not None and two.error.code == ErrorCode.SAMPLING_INVALID
    assert four.error is not None and 'm.csv:5: column "stop": not JSON' in four.error.message
    rows = rows_of(manifest(text.encode(), name="m.csv", prompt="Default"))
    assert rows[2].messages == [{"role": "user", "content": "hi"}]


def test_an_empty_prompt_is_a_prompt_unless_all_have_one(manifest: Make) -> None:
    content = b"prompt,image\n,a.jpg\n"
    assert [row.prompt for row in rows_of(manifest(content, name="m.csv"))] == [""]
    given = manifest(content, name="m.csv", prompt="What?")
    assert [row.prompt for row in rows_of(given)] == ["What?"]


def test_bad_rows_are_errors_in_their_places(manifest: Make) -> None:
    lines = [
        b"prompt,x",
        b"a,1",
        b"b",
        b"c,1,2",
        b"caf\xe9,1",
        b'"a"b,1',
        b"d," + b"y" * 200,
        b'"two',
        b'lines",2',
        b"good,3",
        b'"open,4',
        b"last,5",
    ]
    opened = manifest(b"\n".join(lines), name="m.csv", max_line_bytes=100)
    rows = rows_of(opened)
    errors = {row.line: row.error.message for row in rows if row.error is not None}
    says = {
        3: "m.csv:3: the row has 1 cells, and the header has 2",
        4: "m.csv:4: the row has 3 cells",
        5: 'm.csv:5: column "prompt" is not UTF-8: byte 0xe9',
        6: "m.csv:6: ",
        7: "m.csv:7: the row is longer than the limit of 100 bytes",
        11: "m.csv:11: a quote opens in the row and is not closed before the end of the file",
    }
    assert errors.keys() == says.keys()
    assert all(part in errors[line] for line, part in says.items()), errors
    assert "line 12" in errors[11]
    assert {row.error.code for row in rows if row.error} == {ErrorCode.MANIFEST_LINE_INVALID}
    assert [row.prompt for row in rows if row.error is None] == ["a", "two\nlines", "good"]
    assert [row.index for row in rows] == list(range(9))


def test_a_quote_that_is_not_closed_takes_bounded_memory(manifest: Make) -> None:
    content = b'prompt\n"open\n' + b"x" * 49 + b"\n" + b"good\n" * 30
    rows = rows_of(manifest(content, name="m.csv", max_line_bytes=100))
    assert rows[0].error is not None and "lines 2 to" in rows[0].error.message
    assert rows[-1].prompt == "good"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfep\0r\0o\0m\0p\0t\0\n\0", "the header is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "the header is not UTF-8"),
        (b"prompt,caf\xe9\na,b\n", "the header is not UTF-8"),
        (b"a,b,a\n1,2,3\n", 'two columns are called "a"'),
        (b'"prompt\n', "the header cannot be read"),
        (b"prompt,status\na,b\n", '"status" has a name that the output reserves'),
    ],
)
def test_headers_that_are_refused(manifest: Make, content: bytes, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        manifest(content, name="m.csv").scan()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"prompt,image", b"prompt,image\n\n"])
def test_no_rows(manifest: Make, content: bytes) -> None:
    assert rows_of(manifest(content, name="m.csv")) == []


def test_limit_parts_and_changes(manifest: Make, tmp_path: Path) -> None:
    content = b"prompt,x\na,1\nb,2\nc,y\n"
    limited = manifest(content, name="m.csv", limit=2)
    info = limited.scan()
    assert info.extra_schema.field("x").type == pa.int64()
    assert [row.prompt for row in limited.rows()] == ["a", "b"]
    with (tmp_path / "m.csv").open("ab") as file:
        file.write(b"d,4\n")
    assert [row.prompt for row in limited.rows()] == ["a", "b"]
    whole = manifest(content, name="m.csv")
    assert whole.scan().sha256 != info.sha256
    (tmp_path / "m.csv").write_bytes(content.replace(b"c,", b"d,"))
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(whole.rows())


def test_a_folder_of_files_has_one_type_a_column(tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    (tmp_path / "a.csv").write_text("prompt,x\np,1\n")
    (tmp_path / "year=2026/b.tsv").write_text("x\tprompt\tyear\nseven\tq\t\n")
    opened = open_manifest(ManifestConfig(str(tmp_path), keep_inputs=True), SamplingParams())
    info = opened.scan()
    assert [(f.name, f.type) for f in info.extra_schema] == [
        ("x", pa.string()),
        ("year", pa.string()),
        ("prompt", pa.string()),
    ]
    assert [row.extra.get("x") for row in opened.rows()] == ["1", "seven"]
    assert [kept["prompt"] for kept in opened.kept_inputs()] == ["p", "q"]
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(ManifestError, match="holds both CSV and JSONL"):
        open_manifest(ManifestConfig(str(tmp_path)), SamplingParams())


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_whatever_python_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["prompt", "x"], *((c, c) for c in cells)])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.getvalue().encode())
    rows = rows_of(open_manifest(ManifestConfig(str(path)), SamplingParams()))
    assert [row.prompt for row in rows] == cells
    assert [row.error for row in rows] == [None] * len(cells)
