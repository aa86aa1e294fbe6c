"""What a new run keeps of an earlier one: all answers, or those of rows that have not changed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_files import UnsyncedFiles
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.durable.journal import Journal
from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.row_keys import KEY_BYTES, RowKeyWriter, row_key
from vlmbatch.errors import ErrorCode, OutputError, UsageError
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.schema import RESULT_SCHEMA, output_schema
from vlmbatch.output import carry_over as previous_module
from vlmbatch.output import parquet_writer as writer_module
from vlmbatch.output.carry_over import (
    JournalResults,
    OutputResults,
    PreviousResults,
    seed_unchanged,
    seed_without_errors,
)
from vlmbatch.output.parquet_writer import ParquetResultWriter, ResultWriter
from vlmbatch.output.reader import OutputReader, read_output_counts
from vlmbatch.output.shards import ShardedParquetWriter, list_shards
from vlmbatch.output.work_folder import RUN_ID_KEY
from vlmbatch.stats import RunStats
from vlmbatch.types import ErrorExample, Result, Row

OLD_ID, NEW_ID = bytes(16), bytes(range(16))
SCHEMA = output_schema(pa.schema([("note", pa.string())]))
KINDS = ["file", "shards", "journal"]


def answer(row: Row, run: str = "old") -> Result:
    """What a model would say; a prompt with "bad" in it fails."""
    if row.error is not None:
        return Result.from_error(row, row.error)
    if "bad" in (row.prompt or ""):
        return Result(
            row.index, row.id, error_code=ErrorCode.ENGINE_ERROR, error_message=f"no {row.prompt}"
        )
    return Result(row.index, row.id, f"{row.prompt}! ({run})", "stop", 7, 5, 3, extra=row.extra)


class Job:
    """An old run with its output (or, unfinished, its journal) and keys; a new one to be begun."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.output = folder / ("out" if kind == "shards" else "out.parquet")
        self.work = folder / "work"
        self.old_keys, self.new_keys = self.work / "keys-old", self.work / "keys-new"
        self.num_rows = 0
        self.work.mkdir()

    def run(self, rows: list[Row], results: list[Result] | None = None) -> None:
        """The old run."""
        self.num_rows = len(rows)
        results = results or [answer(row) for row in rows]
        with RowKeyWriter(self.old_keys, UnsyncedFiles()) as keys:
            for row in rows:
                keys.add(row)
        if self.kind == "journal":
            with self.journal_writer(OLD_ID) as journal:
                for result in random.Random(3).sample(results, len(results)):
                    journal.append(result)
            return
        if self.kind == "file":
            writer: ResultWriter = ParquetResultWriter(
                self.output, SCHEMA, {}, files=UnsyncedFiles()
            )
        else:
            writer = ShardedParquetWriter(
                self.output, SCHEMA, {RUN_ID_KEY: "old"}, 4, len(rows), files=UnsyncedFiles()
            )
        for result in results:
            writer.write(result)
        writer.close()

    def journal_writer(self, run_id: bytes) -> JournalWriter:
        return JournalWriter(self.work, run_id, files=UnsyncedFiles())

    @contextmanager
    def results(self) -> Iterator[PreviousResults]:
        if self.kind == "journal":
            with closing(Journal(self.work, OLD_ID, self.num_rows)) as journal:
                yield JournalResults(journal)
        else:
            with OutputResults(self.output, self.num_rows) as results:
                yield results

    def retry_failed(self) -> dict[int, Result]:
        with self.results() as source, self.journal_writer(NEW_ID) as journal:
            num_kept = seed_without_errors(source, journal)
            assert journal.num_acknowledged == num_kept
        return self.kept(self.num_rows, num_kept)

    def incremental(self, rows: list[Row]) -> dict[int, Result]:
        """What is kept for the new rows, by index."""
        with (
            self.results() as source,
            self.journal_writer(NEW_ID) as journal,
            RowKeyWriter(self.new_keys, UnsyncedFiles()) as keys,
        ):
            num_kept = seed_unchanged([(source, self.old_keys)], iter(rows), journal, keys)
            assert journal.num_acknowledged == num_kept
        assert self.new_keys.read_bytes() == b"".join(map(row_key, rows))
        return self.kept(len(rows), num_kept)

    def kept(self, num_rows: int, num_kept: int) -> dict[int, Result]:
        """As a resumed run finds it."""
        journal = Journal.recover(self.work, NEW_ID, num_rows, UnsyncedFiles())
        found = {row: journal.read(row) for row in journal.rows().tolist()}
        journal.close()
        assert len(found) == num_kept
        return found


def prompts(*texts: str, start: int = 0) -> list[Row]:
    return [
        Row(n, f"id-{n}", n + 1, "m.jsonl", text, sampling=SamplingParams())
        for n, text in enumerate(texts, start)
    ]


@pytest.fixture(params=KINDS)
def job(request, tmp_path) -> Job:
    return Job(tmp_path, request.param)


class TestRetryFailed:
    def test_keeps_all_but_the_errors(self, job):
        rows = prompts("a", "bad", "c", "very bad", "e", "f")
        job.run(rows)
        assert job.retry_failed() == {row: answer(rows[row]) for row in (0, 2, 4, 5)}

    @pytest.mark.parametrize("texts", [[], ["bad"], ["bad"] * 9])
    def test_nothing_to_keep(self, job, texts):
        job.run(prompts(*texts))
        assert job.retry_failed() == {}

    def test_of_an_unfinished_run_keeps_what_it_has(self, tmp_path):
        job = Job(tmp_path, "journal")
        rows = prompts("a", "b", "bad", "d", "e")
        job.run(rows, [answer(row) for row in rows[1:4]])
        assert job.retry_failed() == {1: answer(rows[1]), 3: answer(rows[3])}

    def test_every_kind_of_text(self, job):
        rows = prompts("", "é\n\0", "🙂" * 5000)
        job.run(rows)
        assert job.retry_failed() == {n: answer(row) for n, row in enumerate(rows)}


class TestIncremental:
    """From manifest to manifest, through the real reader."""

    @pytest.fixture
    def rows(self, tmp_path):
        def read(*items: dict[str, object], **sampling: Any) -> list[Row]:
            path = tmp_path / "m.jsonl"
            path.write_text("".join(json.dumps(item) + "\n" for item in items))
            return list(open_manifest(ManifestConfig(str(path)), SamplingParams(**sampling)).rows())

        return read

    A, B, C, BAD = ({"prompt": text} for text in ("a", "b", "c", "bad"))

    @pytest.mark.parametrize(
        ("new", "kept"),
        [
            ([A, B, BAD, C], {0: "a", 1: "b", 3: "c"}),
            ([A, {"prompt": "new"}, B, BAD, C], {0: "a", 2: "b", 4: "c"}),
            ([B, C], {0: "b", 1: "c"}),
            ([C, BAD, B, A], {0: "c", 2: "b", 3: "a"}),
            ([A, {"prompt": "b?"}, BAD, C], {0: "a", 3: "c"}),
            ([A, B, B, A, C], {0: "a", 1: "b", 2: "b", 3: "a", 4: "c"}),
            ([A, {**B, "max_tokens": 3}, C], {0: "a", 2: "c"}),
            ([{**A, "note": "seen"}, {**B, "id": "b"}], {0: "a", 1: "b"}),
            ([{**A, "image": 5}, C], {1: "c"}),
            ([{"prompt": 5}, C], {1: "c"}),
            ([], {}),
        ],
    )
    def test_an_edited_manifest(self, job, rows, new, kept):
        job.run(rows(self.A, self.B, self.BAD, self.C))
        new_rows = rows(*new)
        found = job.incremental(new_rows)
        assert {row: result.text for row, result in found.items()} == {
            row: f"{text}! (old)" for row, text in kept.items()
        }
        for row, result in found.items():
            text = kept[row]
            old = answer(replace(new_rows[row], prompt=text))
            assert result == replace(old, extra={})

    def test_of_equal_rows_one_that_was_answered_counts(self, job):
        rows = prompts("a", "a", "a")
        error = Result(
            0, "id-0", error_code=ErrorCode.IMAGE_TIMEOUT, error_message="later it was there"
        )
        job.run(rows, [error, replace(error, index=1, id="id-1"), answer(rows[2])])
        new = prompts("a", "b", "a")
        assert job.incremental(new) == {0: answer(new[0]), 2: answer(new[2])}

    def test_a_changed_image_file(self, job, rows, tmp_path):
        for name in "abc":
            (tmp_path / f"{name}.png").write_bytes(b"12345")
            os.utime(tmp_path / f"{name}.png", ns=(0, 10**18))
        items = [{"prompt": "?", "image": f"{name}.png"} for name in "abc"]
        job.run(rows(*items))
        (tmp_path / "b.png").write_bytes(b"54321")
        (tmp_path / "c.png").unlink()
        assert set(job.incremental(rows(*items))) == {0}

    def test_sampled_rows_without_a_seed_keep_their_answers_only_in_place(self, job, rows):
        seeded = {"prompt": "s", "seed": 5}
        job.run(rows(self.A, self.B, seeded, temperature=1.0))
        new = rows(self.A, {"prompt": "new"}, self.B, seeded, temperature=1.0)
        assert set(job.incremental(new)) == {0, 3}

    def test_without_keys_nothing_is_kept(self, job):
        job.run(prompts("a", "b"))
        job.old_keys.unlink()
        assert job.incremental(prompts("a", "b")) == {}

    def test_keys_of_a_run_that_was_not_finished_are_fewer(self, job):
        job.run(prompts("a", "b", "c"))
        os.truncate(job.old_keys, 2 * KEY_BYTES + 5)
        assert set(job.incremental(prompts("c", "b", "a"))) == {1, 2}

    @given(st.data())
    def test_any_edit(self, tmp_path_factory, data):
        texts = st.lists(st.sampled_from(["a", "b", "c", "d", "bad", "e"]), max_size=14)
        old, new = data.draw(texts), data.draw(texts)
        job = Job(tmp_path_factory.mktemp("job"), data.draw(st.sampled_from(KINDS)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer_module, "_ROW_GROUP_ROWS", 3)
            patch.setattr(previous_module, "_BLOCK_ROWS", 4)
            job.run(prompts(*old))
            found = job.incremental(prompts(*new))
        assert found == {
            n: answer(row) for n, row in enumerate(prompts(*new)) if row.prompt in {*old} - {"bad"}
        }

    @pytest.mark.parametrize("kind", ["file", "shards"])
    def test_a_shuffled_manifest_reads_no_row_group_again(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", 4)
        job = Job(tmp_path, kind)
        rows = prompts(*(str(n) for n in range(100)))
        job.run(rows)
        reads = []

        class CountingReader(OutputReader):
            def read(self, group, columns):
                reads.append((group, tuple(columns)))
                return super().read(group, columns)

        monkeypatch.setattr(previous_module, "OutputReader", CountingReader)
        shuffled = random.Random(1).sample(rows, len(rows))
        found = job.incremental([replace(row, index=n) for n, row in enumerate(shuffled)])
        assert [found[n].text for n in range(100)] == [f"{row.prompt}! (old)" for row in shuffled]
        assert len(reads) == len(set(reads)) == 50

    def test_rows_are_not_held(self, tmp_path):
        """Their images would be too many."""
        job = Job(tmp_path, "file")
        job.run(prompts("a"))
        alive = 0

        class Counted(Row):
            __slots__ = ()

            def __del__(self) -> None:
                nonlocal alive
                alive -= 1

        def rows() -> Iterator[Row]:
            nonlocal alive
            for n in range(100):
                alive += 1
                assert alive <= 3
                yield Counted(n, f"{n}", n, "m.jsonl", "a", sampling=SamplingParams())

        with (
            job.results() as source,
            job.journal_writer(NEW_ID) as journal,
            RowKeyWriter(job.new_keys) as keys,
        ):
            assert seed_unchanged([(source, job.old_keys)], rows(), journal, keys) == 100


class TestOutputResults:
    @pytest.fixture(params=["file", "shards"])
    def job(self, request, tmp_path) -> Job:
        job = Job(tmp_path, request.param)
        job.run(prompts("a", "bad", "c", "d", "e", "f"))
        return job

    def rewrite(self, job: Job, change) -> None:
        """The first file of the output as another program would write it."""
        path = job.output if job.kind == "file" else list_shards(job.output)[0].path
        pq.write_table(change(pq.ParquetFile(path).read()), path)

    def test_any_order(self, job):
        with job.results() as results:
            assert results.answered().tolist() == [True, False, True, True, True, True]
            for row in (5, 0, 3, 2, 5):
                assert results.result(row) == answer(prompts("a", "bad", "c", "d", "e", "f")[row])

    def test_another_number_of_rows(self, job):
        job.num_rows = 7
        with pytest.raises(UsageError, match=r"out\S* was changed by something else.*--overwrite"):
            OutputResults(job.output, job.num_rows)

    @pytest.mark.parametrize(
        "change",
        [
            lambda table: table.slice(1),
            lambda table: table.sort_by([("row_index", "descending")]),
            lambda table: table.filter(pa.compute.field("status") == "ok"),
        ],
    )
    def test_other_rows(self, job, change):
        self.rewrite(job, change)
        with pytest.raises(UsageError, match="was changed by something else"):
            job.retry_failed()

    @pytest.mark.parametrize(
        "change",
        [
            lambda table: table.drop_columns(["text"]),
            lambda table: table.select(["id", *table.drop_columns(["id"]).column_names]),
            lambda table: table.cast(
                table.schema.set(5, pa.field("prompt_tokens", pa.float64())).with_metadata(
                    table.schema.metadata
                )
            ),
            lambda table: table.select(["row_index"]),
        ],
    )
    def test_other_columns(self, job, change):
        self.rewrite(job, change)
        with pytest.raises(UsageError, match="does not start with the columns of an output"):
            OutputResults(job.output, job.num_rows)

    def test_further_columns(self, job):
        self.rewrite(job, lambda table: table.append_column("more", pa.array([1] * len(table))))
        assert len(job.retry_failed()) == 5

    def test_missing_shard(self, tmp_path):
        job = Job(tmp_path, "shards")
        job.run(prompts(*"abcdef"))
        list_shards(job.output)[0].path.unlink()
        with pytest.raises(UsageError, match=r"part-000000\.parquet is missing"):
            OutputResults(job.output, job.num_rows)

    def test_damaged_pages(self, tmp_path):
        job = Job(tmp_path, "file")
        job.run(prompts(*(random.Random(n).randbytes(50).hex() for n in range(200))))
        data = bytearray(job.output.read_bytes())
        data[4:-5000] = bytes(len(data) - 5004)
        job.output.write_bytes(data)
        with pytest.raises(OutputError, match=r"out\.parquet cannot be read"):
            job.retry_failed()

    def test_no_output(self, tmp_path):
        with pytest.raises(OutputError, match=r"out\.parquet cannot be read: .*No such file"):
            OutputResults(tmp_path / "out.parquet", 0)


class TestCounts:
    @pytest.mark.parametrize("kind", ["file", "shards"])
    def test_rows_and_errors_with_the_first_of_each(self, tmp_path, monkeypatch, kind):
        monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", 3)
        job = Job(tmp_path, kind)
        job.run(prompts("a", "b", "c", "d", "bad 4", "e", "bad 6", "bad 7", "bad 8"))
        counts = read_output_counts(job.output)
        assert counts.num_rows == 9
        assert counts.errors == {"engine_error": 4}
        assert counts.error_examples == {"engine_error": ErrorExample(4, "id-4", "no bad 4")}

    def test_agree_with_a_run_that_counts_as_it_goes(self, tmp_path):
        results = [
            Result(n, f"id-{n}", error_code=code, error_message=f"message {n}")
            for n, code in enumerate(random.Random(2).choices([None, *ErrorCode], k=100))
        ]
        stats = RunStats()
        writer = ParquetResultWriter(tmp_path / "out.parquet", RESULT_SCHEMA, {})
        for result in results:
            writer.write(result)
        for result in random.Random(3).sample(results, len(results)):  # as they end
            stats.count(result, 0)
        writer.close()
        counts = read_output_counts(tmp_path / "out.parquet")
        assert counts.num_rows == stats.rows_done
        assert counts.errors == stats.errors
        assert counts.error_examples == stats.error_examples

    def test_no_rows(self, tmp_path):
        job = Job(tmp_path, "shards")
        job.run([])
        counts = read_output_counts(job.output)
        assert (counts.num_rows, counts.errors, counts.error_examples) == (0, {}, {})
