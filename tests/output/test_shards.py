"""A folder of shards: each whole or not there, never changed again, and finished by any resume."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_files import FaultyFiles, PowerCut, UnsyncedFiles, VolatileFiles
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.durable.durable_file import FileSystem
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.schema import output_schema
from vlmbatch.output import parquet_writer as writer_module
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.output.shards import (
    SHARD_KEY,
    Shard,
    ShardedParquetWriter,
    finished_shards,
    list_shards,
    read_shard,
)
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY
from vlmbatch.types import Result

SCHEMA = output_schema(pa.schema([("x", pa.int64())]))
MANY = 10_000  # more calls than a run makes


def open_writer(
    folder: Path,
    num_rows: int,
    shard_rows: int,
    run_id: str = "new",
    files: FileSystem | None = None,
) -> ShardedParquetWriter:
    metadata = {RUN_ID_KEY: run_id, FINGERPRINT_KEY: f"fingerprint of {run_id}"}
    return ShardedParquetWriter(
        folder, SCHEMA, metadata, shard_rows, num_rows, files=files or UnsyncedFiles()
    )


def answer(row: int, run_id: str) -> Result:
    return Result(row, f"id-{row}", f"row {row} of {run_id}", "stop", 5, 0, 3, extra={"x": row})


def run(
    folder: Path,
    num_rows: int,
    shard_rows: int,
    run_id: str = "new",
    files: FileSystem | None = None,
    stop_before: int | None = None,
    written: set[int] | None = None,
) -> ShardedParquetWriter:
    """Write the rows up to ``stop_before``, from the first on, as a resumed run does too.

    ``written`` takes the numbers of the shards that are there when a row's write has returned.
    """
    writer = open_writer(folder, num_rows, shard_rows, run_id, files)
    try:
        for row in range(num_rows if stop_before is None else stop_before):
            writer.write(answer(row, run_id))
            if written is not None and writer.is_written(row):
                written.add(row // shard_rows)
        if stop_before is None:
            writer.close()
    except BaseException:
        writer.abort()
        raise
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def shards_of(folder: Path, run_id: str) -> dict[str, bytes]:
    return {
        shard.path.name: shard.path.read_bytes()
        for shard in list_shards(folder)
        if shard.run_id == run_id
    }


class TestLayout:
    def test_rows_are_cut_into_shards(self, tmp_path):
        run(tmp_path / "out", 7, 3)
        names = ["part-000000.parquet", "part-000001.parquet", "part-000002.parquet"]
        assert sorted(contents(tmp_path / "out")) == names
        for number, (name, rows) in enumerate(zip(names, ([0, 1, 2], [3, 4, 5], [6]), strict=True)):
            table = pq.ParquetFile(tmp_path / "out" / name).read()
            assert table.schema.equals(SCHEMA)
            assert table["row_index"].to_pylist() == table["x"].to_pylist() == rows
            metadata = table.schema.metadata
            assert metadata[RUN_ID_KEY.encode()] == b"new"
            assert metadata[SHARD_KEY.encode()] == b"%d/3" % number
            path = tmp_path / "out" / name
            assert read_shard(path) == Shard(
                path, number, 3, len(rows), "new", "fingerprint of new"
            )

    @pytest.mark.parametrize(("num_rows", "sizes"), [(6, [3, 3]), (1, [1]), (0, [0])])
    def test_sizes(self, tmp_path, num_rows, sizes):
        run(tmp_path / "out", num_rows, 3)
        shards = finished_shards(tmp_path / "out")
        assert [shard.num_rows for shard in shards] == sizes
        assert pq.read_table(tmp_path / "out").schema.equals(SCHEMA)

    def test_a_shard_is_committed_with_its_last_row(self, tmp_path):
        writer = open_writer(tmp_path / "out", 5, 2)
        for row in range(4):
            writer.write(answer(row, "new"))
            assert len(list_shards(tmp_path / "out")) == (row + 1) // 2
            assert [writer.is_written(n) for n in range(5)] == [
                n < (row + 1) // 2 * 2 for n in range(5)
            ]
        complete = [writer.is_complete]
        writer.write(answer(4, "new"))
        assert [*complete, writer.is_complete] == [False, True]
        assert len(finished_shards(tmp_path / "out")) == 3

    def test_rows_out_of_order_are_refused(self, tmp_path):
        writer = open_writer(tmp_path / "out", 5, 2)
        with pytest.raises(AssertionError):
            writer.write(answer(1, "new"))
        writer.abort()

    def test_closing_too_early_is_refused(self, tmp_path):
        with pytest.raises(AssertionError, match="1 of 2 shards"):
            run(tmp_path / "out", 4, 2, stop_before=2).close()


class TestResume:
    @given(st.data())
    def test_after_any_stops(self, tmp_path_factory, data):
        """Stopped in order or killed at any row: in the end the folder is that of one run."""
        num_rows, shard_rows = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 5))
        stops = data.draw(st.lists(st.tuples(st.integers(0, num_rows), st.booleans()), max_size=5))
        root = tmp_path_factory.mktemp("resume")
        out = root / "out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer_module, "_ROW_GROUP_ROWS", 2)
            committed: dict[str, bytes] = {}
            for number, (stop, is_killed) in enumerate(stops):
                out.mkdir(exist_ok=True)
                writer = run(out, num_rows, shard_rows, stop_before=stop)
                if is_killed:
                    out = shutil.copytree(out, root / f"{number}")  # out of the writer's reach
                writer.abort()
                found = shards_of(out, "new")
                assert committed.items() <= found.items()
                committed = found
            run(out, num_rows, shard_rows)
            run(root / "other", num_rows, shard_rows)
        finished = contents(out)
        assert committed.items() <= finished.items()
        assert finished == contents(root / "other")

    def test_aborting_removes_what_is_not_whole(self, tmp_path):
        writer = run(tmp_path / "out", 6, 2, stop_before=3)
        assert len(contents(tmp_path / "out")) == 2
        writer.abort()
        writer.abort()
        assert list(contents(tmp_path / "out")) == ["part-000000.parquet"]

    def test_written_rows_may_be_left_out(self, tmp_path):
        run(tmp_path / "out", 6, 2, stop_before=5).abort()
        writer = open_writer(tmp_path / "out", 6, 2)
        for row in range(6):
            if not writer.is_written(row):
                writer.write(answer(row, "new"))
        writer.close()
        run(tmp_path / "other", 6, 2)
        assert contents(tmp_path / "out") == contents(tmp_path / "other")

    def test_a_shard_in_the_middle_may_be_lost(self, tmp_path):
        run(tmp_path / "out", 6, 2)
        before = contents(tmp_path / "out")
        (tmp_path / "out" / "part-000001.parquet").unlink()
        run(tmp_path / "out", 6, 2)
        assert contents(tmp_path / "out") == before

    def test_finished_shards_are_not_opened_for_writing(self, tmp_path):
        run(tmp_path / "out", 6, 2, stop_before=4)
        files = FaultyFiles()
        run(tmp_path / "out", 6, 2, files=files)
        assert files.calls.count("replace") == 1
        stamps = [shard.path.stat().st_mtime_ns for shard in list_shards(tmp_path / "out")]
        files = FaultyFiles()
        run(tmp_path / "out", 6, 2, files=files)
        assert files.calls == []
        assert stamps == [s.path.stat().st_mtime_ns for s in list_shards(tmp_path / "out")]


class TestPowerCut:
    NUM_ROWS, SHARD_ROWS = 3, 2

    @pytest.fixture
    def undisturbed(self, tmp_path) -> dict[str, bytes]:
        run(tmp_path / "undisturbed", self.NUM_ROWS, self.SHARD_ROWS)
        return contents(tmp_path / "undisturbed")

    def cut(
        self, root: Path, at: int, rng: random.Random | None, pretended: frozenset[str]
    ) -> tuple[bool, Path]:
        """Cut the power at call ``at``: whether the run had ended before, and what is left.

        Shards that the writer said were written are left.
        """
        files = VolatileFiles(root / "before", at, pretended)
        written: set[int] = set()
        try:
            run(
                root / "before" / "out",
                self.NUM_ROWS,
                self.SHARD_ROWS,
                files=files,
                written=written,
            )
            finished = True
        except PowerCut:
            finished = False
        files.survive(root / "after", rng)
        out = root / "after" / "out"
        assert written <= {shard.number for shard in list_shards(out) if shard.run_id == "new"}
        return finished, out

    def at_every_call(
        self,
        tmp_path: Path,
        undisturbed: dict[str, bytes],
        seeds: int = 0,
        pretended: frozenset[str] = frozenset(),
    ) -> int:
        for at in range(MANY):
            for seed in [None, *range(seeds)]:
                root = tmp_path / f"{at}-{seed}"
                (root / "before").mkdir(parents=True)
                rng = None if seed is None else random.Random(10 * at + seed)
                finished, out = self.cut(root, at, rng, pretended)
                left = shards_of(out, "new")
                assert left.items() <= undisturbed.items()
                run(out, self.NUM_ROWS, self.SHARD_ROWS)
                assert contents(out) == undisturbed
            if finished:
                return at
        raise AssertionError("the run never ends")

    def test_at_every_call(self, tmp_path, undisturbed):
        assert self.at_every_call(tmp_path, undisturbed, seeds=1) > 20

    @pytest.mark.parametrize("call", ["fsync", "fsync_folder"])
    def test_check_fails_without(self, tmp_path, undisturbed, call):
        with pytest.raises((AssertionError, UsageError)):
            self.at_every_call(tmp_path, undisturbed, pretended=frozenset({call}))

    def test_while_the_shards_of_an_old_run_are_replaced(self, tmp_path, undisturbed):
        for at in range(MANY):
            root = tmp_path / f"{at}"
            (root / "before").mkdir(parents=True)
            run(root / "before" / "out", 9, 3, "old", stop_before=7)  # and a temporary file
            (root / "before" / "out" / "README.md").write_text("mine")
            finished, out = self.cut(root, at, random.Random(at), frozenset())
            assert not (shards_of(out, "new") and shards_of(out, "old")), "runs are mixed"
            run(out, self.NUM_ROWS, self.SHARD_ROWS)
            assert contents(out) == undisturbed | {"README.md": b"mine"}
            if finished:
                assert at > 20
                return
        raise AssertionError("the run never ends")


class TestFailingDisk:
    @pytest.mark.parametrize("numbers", [(errno.ENOSPC, errno.EIO), (None,)], ids=str)
    def test_is_told_and_can_be_resumed(self, tmp_path, numbers):
        """Two errors by turns. ``None``: a write that is short is no failure."""
        run(tmp_path / "undisturbed", 3, 2)
        run(tmp_path / "healthy", 3, 2, "old")
        healthy = FaultyFiles()
        run(tmp_path / "healthy", 3, 2, files=healthy)
        for at in range(len(healthy.calls)):
            out = tmp_path / f"{at}"
            number = numbers[at % len(numbers)]
            run(out, 3, 2, "old")
            try:
                run(out, 3, 2, files=FaultyFiles(at, number))
                assert number is None
            except OutputError as error:
                assert number is not None
                assert str(out) in str(error)
            committed = shards_of(out, "new")
            run(out, 3, 2)
            assert committed.items() <= contents(out).items()
            assert contents(out) == contents(tmp_path / "undisturbed")

    def test_folder_removed(self, tmp_path):
        writer = open_writer(tmp_path / "out", 4, 1)
        writer.write(answer(0, "new"))
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()
        with pytest.raises(OutputError, match="Check that its folder exists"):
            writer.write(answer(1, "new"))
        writer.abort()


class TestOtherFiles:
    def test_opening_changes_nothing(self, tmp_path):
        open_writer(tmp_path / "new folder", 5, 2)
        assert not (tmp_path / "new folder").exists()
        run(tmp_path / "out", 9, 3, "old", stop_before=7)
        before = contents(tmp_path / "out")
        open_writer(tmp_path / "out", 5, 2)
        assert contents(tmp_path / "out") == before
        assert len(before) == 3

    def test_files_that_are_not_ours_stay(self, tmp_path):
        out = tmp_path / "out"
        run(out, 9, 3, "old")
        pq.write_table(pa.table({"x": [1]}), out / "data.parquet")
        pq.write_table(pa.table({"x": [1]}), out / "part-000009.parquet")
        (out / "part-000000.parquet").rename(out / "part-000123.parquet")  # by its user
        (out / "part-00000-c000.snappy.parquet").write_bytes(b"not Parquet")
        (out / ".part-000000.parquet.tmp").write_bytes(b"another program's")
        (out / "folder").mkdir()
        others = {path.name for path in out.iterdir()} - {
            "part-000001.parquet",
            "part-000002.parquet",
        }
        run(out, 4, 2)
        names = {path.name for path in out.iterdir()}
        assert names == others | {"part-000000.parquet", "part-000001.parquet"}

    def foreign(self, path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), path)

    def unreadable(self, path: Path) -> None:
        path.write_bytes(b"PAR1 and no footer")

    def folder(self, path: Path) -> None:
        path.mkdir()

    def plain_output(self, path: Path) -> None:
        """A whole output of ours that its user moved here is no shard."""
        writer = ParquetResultWriter(path, SCHEMA, {RUN_ID_KEY: "old"})
        writer.close()

    @pytest.mark.parametrize("make", [foreign, unreadable, folder, plain_output])
    def test_a_name_in_the_way_is_refused(self, tmp_path, make):
        out = tmp_path / "out"
        run(out, 9, 3, "old")
        (out / "part-000001.parquet").unlink()
        make(self, out / "part-000001.parquet")
        before = sorted(path.name for path in out.iterdir())
        with pytest.raises(UsageError, match=r"part-000001\.parquet was not written by vlmbatch"):
            open_writer(out, 5, 2)
        assert sorted(path.name for path in out.iterdir()) == before

    def test_a_file_in_the_place_of_the_folder_is_refused(self, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(UsageError, match="out is a file"):
            open_writer(tmp_path / "out", 5, 2)

    @pytest.mark.parametrize(("num_rows", "shard_rows"), [(6, 3), (6, 1), (4, 2), (7, 2), (0, 2)])
    def test_another_division_of_the_same_run_is_refused(self, tmp_path, num_rows, shard_rows):
        run(tmp_path / "out", 6, 2)
        before = contents(tmp_path / "out")
        with pytest.raises(
            UsageError, match=r"is one of 3 shards and has 2 rows, expected .*--shard-rows"
        ):
            open_writer(tmp_path / "out", num_rows, shard_rows)
        assert contents(tmp_path / "out") == before


class TestFinishedShards:
    def test_a_missing_one_is_named(self, tmp_path):
        run(tmp_path / "out", 6, 2)
        for name in ("part-000002.parquet", "part-000000.parquet"):
            (tmp_path / "out" / name).unlink()
            with pytest.raises(UsageError, match=f"{name} is missing"):
                finished_shards(tmp_path / "out")

    def test_none_at_all(self, tmp_path):
        with pytest.raises(UsageError, match=r"part-000000\.parquet is missing"):
            finished_shards(tmp_path / "out")

    @pytest.mark.parametrize("num_rows", [6, 8])
    def test_one_of_another_run_is_named(self, tmp_path, num_rows):
        run(tmp_path / "out", 6, 2)
        run(tmp_path / "other", num_rows, 2, "old")
        for shard in list_shards(tmp_path / "other")[1:]:
            shard.path.replace(tmp_path / "out" / shard.path.name)
        message = r"part-000001\.parquet is of another run than part-000000\.parquet"
        with pytest.raises(UsageError, match=message):
            finished_shards(tmp_path / "out")

    def test_one_too_many_is_named(self, tmp_path):
        run(tmp_path / "out", 4, 2)
        run(tmp_path / "other", 6, 2, "old")
        shard = list_shards(tmp_path / "other")[-1]
        shard.path.replace(tmp_path / "out" / shard.path.name)
        with pytest.raises(UsageError, match=r"part-000002\.parquet is of another run"):
            finished_shards(tmp_path / "out")
