"""The manifest as a whole: where it is found, ids, reserved names, standard input, limits."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError, OutputError
from vlmbatch.manifest import ids
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest


def stream(content: bytes, **options) -> Manifest:
    config = ManifestConfig("-", **options)
    return open_manifest(config, SamplingParams(), streaming=True, stdin=io.BytesIO(content))


def opened(path: Path | str, **options) -> Manifest:
    return open_manifest(ManifestConfig(str(path), **options), SamplingParams())


class TestFinding:
    def test_missing(self, tmp_path):
        with pytest.raises(ManifestError, match=r"none\.jsonl: no such manifest"):
            opened(tmp_path / "none.jsonl")

    def test_nul_in_the_path(self):
        with pytest.raises(ManifestError):
            opened("a\0.jsonl")

    def test_unknown_kind(self, tmp_path):
        (tmp_path / "m.ods").write_text("prompt\n")
        with pytest.raises(ManifestError, match=r"must end in .*\.jsonl"):
            opened(tmp_path / "m.ods")
        (tmp_path / "m.json").write_text("[]")
        with pytest.raises(ManifestError, match=r"\. jq -c '\.\[\]' makes JSON Lines of an array"):
            opened(tmp_path / "m.json")

    @pytest.mark.timeout(20)
    def test_named_pipe_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "m.jsonl")
        with pytest.raises(ManifestError, match="not a file"):
            opened(tmp_path / "m.jsonl")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable(self, tmp_path):
        path = tmp_path / "m.jsonl"
        path.write_text("{}")
        path.chmod(0)
        with pytest.raises(ManifestError, match="cannot be read"):
            opened(path).scan()

    def test_vanished_before_the_scan(self, tmp_path):
        path = tmp_path / "m.jsonl"
        path.write_text("{}")
        manifest = opened(path)
        path.unlink()
        with pytest.raises(ManifestError, match="cannot be read: No such file"):
            manifest.scan()

    def test_folder_without_manifests(self, tmp_path):
        (tmp_path / "_hidden.jsonl").write_text("{}")
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(ManifestError, match="and no file that ends in"):
            opened(tmp_path)

    def test_folder_of_both_kinds(self, tmp_path):
        (tmp_path / "a.jsonl").touch()
        (tmp_path / "b.parquet").touch()
        with pytest.raises(ManifestError, match=r"a\.jsonl and b\.parquet"):
            opened(tmp_path)

    def test_folder_is_read_by_name(self, tmp_path):
        for name in ("b", "a", "c"):
            (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "{name}": 1}}\n')
        (tmp_path / "image.jpg").touch()
        manifest = opened(tmp_path)
        info = manifest.scan()
        assert [Path(file).name for file in info.files] == ["a.jsonl", "b.jsonl", "c.jsonl"]
        assert info.extra_schema.names == ["a", "b", "c"]
        assert [(row.index, row.prompt, row.line) for row in manifest.rows()] == [
            (0, "a", 1),
            (1, "b", 1),
            (2, "c", 1),
        ]

    def test_folder_digest_tells_contents_and_names(self, tmp_path):
        first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
        first.write_text("{}\n{}\n")
        second.write_text("{}\n")
        before = opened(tmp_path).scan().sha256
        second.write_text("{}\n\n")
        content = opened(tmp_path).scan().sha256
        second.rename(tmp_path / "c.jsonl")
        name = opened(tmp_path).scan().sha256
        assert len({before, content, name}) == 3

    def test_each_file_of_a_folder_must_begin_with_an_object(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
        (tmp_path / "b.jsonl").write_text("prompt,image\n")
        with pytest.raises(ManifestError, match=r"b\.jsonl:1"):
            opened(tmp_path).scan()


class TestIds:
    def test_given_integer_and_missing(self, manifest):
        rows = list(manifest([{"id": "x"}, {"id": 7}, {"id": None}, {}]).rows())
        assert [row.id for row in rows] == ["x", "7", "#2", "3"]

    def test_numbers_from_1_with_a_gap(self, manifest):
        """As pandas stores them: a gap's index is the id of the row before."""
        opened = manifest([{"id": 1.0}, {"id": None}, {"id": 3.0}])
        assert opened.scan().num_rows == 3
        assert [row.id for row in opened.rows()] == ["1", "#1", "3"]

    @pytest.mark.parametrize("value", [1.5, True, ["a"], {"a": 1}])
    def test_other_types_are_an_error_row(self, manifest, value):
        opened = manifest([{"prompt": "a"}, {"prompt": "a", "id": value}])
        assert opened.scan().num_rows == 2
        row = list(opened.rows())[1]
        assert row.id == "#1"
        assert row.error is not None and row.error.code is ErrorCode.MANIFEST_LINE_INVALID

    @pytest.mark.parametrize(
        ("rows", "named"),
        [
            ([{"id": "a"}, {"id": "b"}, {"id": "a"}], ("a", 1, 3)),
            ([{"id": "7"}, {"id": 7}], ("7", 1, 2)),
            ([{"id": "1"}, {}], ("1", 1, 2)),
            ([{}, {"id": 0}], ("0", 1, 2)),
            ([{"id": "#1"}, {"id": [5]}], ("#1", 1, 2)),
        ],
    )
    def test_duplicate_names_both_lines(self, manifest, rows, named):
        row_id, first, second = named
        message = rf'duplicate id "{row_id}": .*m\.jsonl:{first} and .*m\.jsonl:{second}\.'
        with pytest.raises(ManifestError, match=message):
            manifest(rows).scan()

    def test_duplicate_in_another_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"id": "x"}\n')
        (tmp_path / "b.jsonl").write_text('\n{"id": "y"}\n{"id": "x"}\n')
        with pytest.raises(ManifestError, match=r"a\.jsonl:1 and .*b\.jsonl:3"):
            opened(tmp_path).scan()

    def test_two_ids_with_one_hash_are_no_duplicate(self, manifest, monkeypatch):
        monkeypatch.setattr(ids, "hash", lambda text: 1, raising=False)
        assert manifest([{"id": "a"}, {"id": "b"}]).scan().num_rows == 2

    def test_illegible_line_takes_no_other_rows_id(self, manifest):
        content = b'{"id": 1}\n{"id": 2\n{"id": 3}\n{"id": 4}'  # ids count from 1, line 2 is broken
        opened = manifest(content)
        assert opened.scan().num_rows == 4
        assert [row.id for row in opened.rows()] == ["1", "#1", "3", "4"]

    def test_duplicate_beyond_the_limit_does_not_matter(self, manifest):
        rows = [{"id": "a"}, {"id": "b"}, {"id": "a"}]
        assert manifest(rows, limit=2).scan().num_rows == 2


class TestReservedNames:
    @pytest.mark.parametrize("name", ["text", "status", "row_index", "error_code"])
    def test_refused_by_the_scan(self, manifest, name):
        with pytest.raises(ManifestError, match=rf'm\.jsonl:2: column "{name}"'):
            manifest([{"prompt": "a"}, {"prompt": "a", name: 1}]).scan()

    def test_allowed_as_an_input(self, manifest):
        opened = manifest([{"text": "a"}], prompt_column="text")
        assert opened.scan().extra_schema.names == []
        assert next(opened.rows()).prompt == "a"

    def test_id_that_is_not_the_id_column(self, manifest):
        with pytest.raises(ManifestError, match='column "id"'):
            manifest([{"prompt": "a", "id": 1, "key": 2}], id_column="key").scan()

    def test_one_column_cannot_be_two_inputs(self, manifest):
        with pytest.raises(ConfigError, match='column "image"'):
            manifest([{}], prompt_column="image")


class TestNamedColumns:
    """Columns that a user has named are looked for before any row is answered."""

    @pytest.mark.parametrize("option", ["prompt_column", "image_column", "id_column"])
    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_in_no_row(self, tmp_path, option, kind):
        path = tmp_path / f"m.{kind}"
        rows = [{"prompt": "a", "meta": {"key": "x"}}, {"prompt": "b", "meta": None}]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(ManifestError, match=rf"{flag} promt: no row .*did you mean .prompt"):
            opened(path, **{option: "promt"}).scan()
        with pytest.raises(ManifestError, match=rf"{flag} meta.key: .*a field of a column cannot"):
            opened(path, **{option: "meta.key"}).scan()

    def test_in_a_later_row_or_null(self, manifest):
        found = manifest([{"prompt": "a"}, {"prompt": "b", "key": None}], id_column="key")
        assert found.scan().num_rows == 2

    def test_in_another_file_of_the_folder(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
        (tmp_path / "b.jsonl").write_text('{"prompt": "b", "key": "x"}\n')
        assert opened(tmp_path, id_column="key").scan().num_rows == 2

    def test_not_within_the_limit(self, manifest):
        rows = [{"prompt": "a"}, {"prompt": "b", "key": "x"}]
        with pytest.raises(ManifestError, match="--id-column key"):
            manifest(rows, id_column="key", limit=1).scan()

    def test_no_rows_at_all(self, manifest):
        assert manifest(b"", id_column="key").scan().num_rows == 0

    def test_defaults_need_not_be_there(self, manifest):
        assert manifest([{"messages": []}]).scan().num_rows == 1


class TestLimit:
    ROWS = tuple({"prompt": str(n), "x": n} for n in range(5))

    @pytest.mark.parametrize(("limit", "count"), [(0, 0), (3, 3), (5, 5), (9, 5)])
    def test_stops_both_passes(self, manifest, limit, count):
        opened = manifest(list(self.ROWS), limit=limit)
        assert opened.scan().num_rows == count
        assert len(list(opened.rows())) == count

    def test_does_not_look_further(self, manifest):
        content = json.dumps(self.ROWS[0]).encode() + b'\n{"prompt": "a", "text": 1}'
        assert manifest(content, limit=1).scan().num_rows == 1

    def test_goes_on_into_the_next_file(self, tmp_path):
        for name in "abc":
            (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a"}\n' * 2)
        manifest = opened(tmp_path, limit=3)
        assert manifest.scan().num_rows == 3
        assert [Path(row.file).name for row in manifest.rows()] == ["a.jsonl", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("line", "warned"),
    [
        ({"prompt": "a", " Image": "a.jpg"}, True),
        ({"prompt": "a", "images": ["a.jpg"], "id": "1"}, True),
        ({"prompt": "a", "image": "a.jpg", "images": 1}, False),
        ({"prompt": "a", "image_id": 1}, False),
        ({"custom_id": "a", "body": {}, "images": ["a.jpg"]}, False),
    ],
)
def test_a_column_that_is_called_much_like_the_image_column_is_warned_of(
    tmp_path, caplog, line, warned
):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(line))
    opened(path).scan()
    assert ("no row has an image: they are read from column" in caplog.text) == warned


def test_a_prompt_that_no_row_lacks_is_warned_of(manifest, caplog):
    rows = [{"prompt": "Own"}, {"messages": [{"role": "user", "content": "Own"}]}, []]
    with caplog.at_level("WARNING"):
        list(manifest([*rows, {"n": 1}], prompt="All").rows())
        assert not caplog.records
        list(manifest(rows, prompt="All").rows())
    assert "--prompt is for rows without a prompt" in caplog.text


class TestStandardInput:
    CONTENT = b'{"prompt": "a", "image": "i.png", "x": 1}\n{"prompt": "b"}\n'

    def test_two_passes_beside_each_other(self):
        prompts = [f"{number} " * 1000 for number in range(500)]  # more than a buffer
        content = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts).encode()
        config = ManifestConfig("-", keep_inputs=True)
        found = open_manifest(config, SamplingParams(), stdin=io.BytesIO(content))
        found.scan()
        pairs = zip(found.rows(), found.kept_inputs(), strict=True)
        assert [(row.prompt, kept["prompt"]) for row, kept in pairs] == [(p, p) for p in prompts]

    def test_spooled_is_read_twice(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        stdin = io.BytesIO(self.CONTENT)
        manifest = open_manifest(ManifestConfig("-"), SamplingParams(), stdin=stdin)
        info = manifest.scan()
        assert (info.num_rows, info.files, info.extra_schema.names) == (2, ("<stdin>",), ["x"])
        first, second = manifest.rows()
        assert (first.images[0].path, second.prompt) == ("i.png", "b")
        assert [row.id for row in manifest.rows()] == ["0", "1"]

    def test_no_room_for_the_copy(self, monkeypatch):
        class Full(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise OSError(28, "No space left on device")

        with pytest.raises(OutputError, match="TMPDIR"):
            open_manifest(ManifestConfig("-"), SamplingParams(), stdin=Full())

    def test_streamed_row_by_row(self):
        class Live(io.RawIOBase):
            """Fails the test when it is read ahead of what was asked for."""

            asked = 0

            def readable(self) -> bool:
                return True

            def readinto(self, buffer) -> int:
                assert self.asked, "read before the row was asked for"
                self.asked -= 1
                line = b'{"prompt": "a"}\n'
                buffer[: len(line)] = line
                return len(line)

        live = Live()
        config = ManifestConfig("-")
        stdin = io.BufferedReader(live)
        rows = open_manifest(config, SamplingParams(), streaming=True, stdin=stdin).rows()
        for index in range(3):
            live.asked = 1
            assert next(rows).index == index

    def test_streamed_duplicate_is_an_error_row(self):
        rows = list(
            stream(b'{"id": "a", "prompt": "x"}\n{"prompt": "x"}\n{"id": "a"}\n{"id": 1}').rows()
        )
        assert [row.error and row.error.code for row in rows] == [
            None,
            None,
            ErrorCode.ID_DUPLICATE,
            ErrorCode.ID_DUPLICATE,
        ]

    def test_streamed_duplicates_are_found_however_far_apart(self, monkeypatch):
        monkeypatch.setattr(ids, "_MAX_LATEST", 8)
        names = [f"r{number * number % 1000}" for number in range(1000)]
        content = b"".join(b'{"id": "%b", "prompt": "p"}\n' % name.encode() for name in names)
        found = [row.error is not None for row in stream(content).rows()]
        assert found == [name in names[:index] for index, name in enumerate(names)]

    def test_streamed_ids_take_little_memory(self):
        seen, count = ids.SeenIds(), 2**17 + 5000
        tracemalloc.start()
        try:
            for number in range(count):
                seen.add(f"row-{number}")
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 13 * count and peak < 30 * count

    @pytest.mark.parametrize("limit", [None, 2])
    def test_streamed_rows_without_a_named_column_are_warned_of(self, caplog, limit):
        content = b'{"prompt": "a"}\n{"broken\n{"prompt": "b", "key": null}\n'
        with caplog.at_level("WARNING"):
            list(stream(content, id_column="key", image_column="promt", limit=limit).rows())
        options = [record.getMessage().partition(":")[0] for record in caplog.records]
        assert options == ["--image-column promt", "--id-column key"][: 2 if limit else 1]
        assert 'did you mean "prompt"?' in caplog.text

    def test_streamed_reserved_name(self):
        content = b'{"prompt": "a"}\n{"prompt": "a", "text": 1}\n{"prompt": "b"}\n'
        errors = [row.error for row in stream(content).rows()]
        assert errors[0] is None and errors[2] is None
        assert errors[1] is not None and "reserves" in errors[1].message
        with pytest.raises(ManifestError, match="<stdin>:1"):
            list(stream(b'{"prompt": "a", "text": 1}').rows())
