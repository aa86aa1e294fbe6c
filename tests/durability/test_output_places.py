"""Outputs that lie elsewhere than their name: on a disk of their own, or behind a link."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from resumable_runs import WITH_ERRORS, ResumableRun, digests, read_rows

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.durable.run_paths import real_output, work_folder_path
from vlmbatch.errors import ManifestError, UsageError
from vlmbatch.jobs.status import read_status
from vlmbatch.manifest.open import open_manifest
from vlmbatch.manifest.sources import find_files

SHARD_ROWS = 64
POINTS = ("run_record.synced", "journal.acknowledged:3", "output.published:2", "output.renamed:5")


@pytest.mark.parametrize("crash_at", POINTS)
def test_a_disk_of_its_own_is_all_that_is_left(new_run, expected, volume, crash_at):
    """The machine around it is made anew, the volume is mounted again."""
    (volume / "lost+found").mkdir()
    run = new_run(folder=volume.parent, shard_rows=SHARD_ROWS)
    assert run.output == volume
    assert run.attempt(crash_at=crash_at) == -signal.SIGKILL
    assert [*volume.parent.iterdir()] == [volume]
    if run.acknowledged:
        assert read_status(volume).rows_done >= len(run.acknowledged)
        assert read_status(volume / "_vlmbatch") == read_status(volume)
    (volume / "lost+found").rmdir()
    run.finish(expected)
    assert run.start().wait() == WITH_ERRORS


def test_readers_of_a_folder_pass_the_work_folder_by(new_run, volume):
    run = new_run(folder=volume.parent, shard_rows=SHARD_ROWS)
    assert run.attempt(crash_at="output.published:2") == -signal.SIGKILL
    assert (volume / "_vlmbatch/run.json").exists()
    assert pq.read_table(volume).num_rows == 2 * SHARD_ROWS
    names = [file.name for file in find_files(ManifestConfig(str(volume)))[0]]
    assert names == [str(volume / f"part-00000{number}.parquet") for number in range(2)]
    with pytest.raises(ManifestError, match="output reserves"):  # its columns were read
        open_manifest(ManifestConfig(str(volume)), SamplingParams()).scan()


def test_a_run_that_was_begun_beside_is_finished_there(new_run, expected, volume, tmp_path):
    """As earlier versions did, and before a volume was mounted."""
    first = new_run(shard_rows=SHARD_ROWS)
    assert first.attempt(crash_at="output.published:1") == -signal.SIGKILL
    shutil.copytree(first.output, volume, dirs_exist_ok=True)
    shutil.copytree(first.folder / "out.vlmbatch", volume.parent / "out.vlmbatch")
    run = new_run(folder=volume.parent, shard_rows=SHARD_ROWS)
    run.acknowledged |= first.acknowledged
    run.finish(expected)


def test_a_folder_whose_parent_may_not_be_written(
    new_run, model, manifest, open_folder, user, expected
):
    shutil.copytree(model, open_folder / "model")
    shutil.copy(manifest, open_folder / "manifest.jsonl")
    (open_folder / "run/out").mkdir(parents=True)
    (open_folder / "run/out").chmod(0o777)
    inputs = open_folder / "manifest.jsonl", open_folder / "model"
    run = new_run(*inputs, open_folder / "run", shard_rows=SHARD_ROWS, user=user)
    assert run.attempt(crash_at="output.published:2") == -signal.SIGKILL
    run.finish(expected)
    assert (run.output / "_vlmbatch").is_dir()


def test_a_place_that_may_not_be_looked_at(commands, user, open_folder):
    (open_folder / "closed").mkdir(mode=0o700)
    command = commands.run("status", open_folder / "closed/out.parquet", user=user)
    assert command.wait() == 74 and "Permission denied" in command.stderr


@pytest.fixture
def linked(new_run, expected) -> ResumableRun:
    """A run on ``link``, which leads to a folder that is not there yet."""
    run = new_run(shard_rows=SHARD_ROWS)
    (run.folder / "elsewhere").mkdir()
    (run.folder / "link").symlink_to("elsewhere/out")
    run.arguments[run.arguments.index(run.output)] = run.folder / "link"
    return run


def test_two_names_of_a_folder_are_one_output(linked, commands, expected):
    by_link = linked.arguments
    real = linked.folder / "elsewhere/out"
    by_name = [real if argument == linked.folder / "link" else argument for argument in by_link]
    first = linked.start(step_seconds=0.02)
    first.wait_until(lambda: first.computed)
    second = commands.run(*by_name)
    assert second.wait() == 75 and "another run" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = commands.run(*by_name)
    assert done.wait() == WITH_ERRORS
    assert not set(first.acknowledged) & set(done.computed)
    assert read_rows(real) == expected
    assert {*real.parent.iterdir()} == {real, real.with_name("out.vlmbatch")}
    for arguments in (by_name, by_link):
        again = commands.run(*arguments)
        assert again.wait() == WITH_ERRORS and not again.has("loading")
        assert "done by an earlier run" in again.stderr
    assert read_status(linked.folder / "link").state == "complete"


def test_shards_of_another_run_do_not_pass_for_the_runs_own(new_run, expected):
    run, other = (new_run(shard_rows=SHARD_ROWS) for _ in range(2))
    assert run.attempt() == other.attempt("--max-tokens", 1) == WITH_ERRORS
    shutil.rmtree(run.output)
    shutil.copytree(other.output, run.output)
    before = digests(run.folder)
    command = run.start()
    assert command.wait() == 2 and "no run on it is known" in command.stderr
    assert digests(run.folder) == before
    assert read_status(run.output).state == "replaced"
    run.acknowledged.clear()
    assert run.attempt("--overwrite") == WITH_ERRORS
    run.check_finished(expected)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_file_is_followed(new_run, commands, expected, there):
    """The link stays a link, and who reads the file sees the new answers."""
    run = new_run()
    big = run.folder / "big"
    big.mkdir()
    if there:
        shutil.copy(Path(__file__), big / "real.parquet")
    link = run.folder / "link.parquet"
    link.symlink_to("big/real.parquet")
    run.arguments[run.arguments.index(run.output)] = link
    if there:
        assert run.start().wait() == 2  # it is no output of ours
    assert run.start("--overwrite", crash_at="journal.acknowledged:3").wait() == -signal.SIGKILL
    assert run.start().wait() == WITH_ERRORS
    assert link.readlink() == Path("big/real.parquet")
    assert read_rows(big / "real.parquet") == expected
    assert {path.name for path in run.folder.iterdir()} == {"big", "link.parquet"}
    assert {path.name for path in big.iterdir()} == {"real.parquet", "real.parquet.vlmbatch"}


def test_a_link_to_a_batch_output_has_its_errors_beside_the_file(new_run, tmp_path):
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": 1}},
    ]
    manifest = tmp_path / "requests.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = new_run(manifest)
    (run.folder / "big").mkdir()
    (run.folder / "results.jsonl").symlink_to("big/real.jsonl")
    run.arguments[run.arguments.index(run.output)] = run.folder / "results.jsonl"
    assert run.start().wait() == WITH_ERRORS
    names = {path.name for path in (run.folder / "big").iterdir()}
    assert names == {"real.jsonl", "real.errors.jsonl", "real.jsonl.vlmbatch"}
    again = run.start()
    assert again.wait() == WITH_ERRORS and not again.has("loading")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("link.parquet", "leads nowhere"),
        ("none/real.parquet", "there is no folder"),
        ("real.data", "does not end in .parquet"),
    ],
)
def test_a_link_that_cannot_be_followed_is_refused(new_run, target, message):
    run = new_run()
    link = run.folder / "link.parquet"
    link.symlink_to(target)
    run.arguments[run.arguments.index(run.output)] = link
    command = run.start()
    assert command.wait() == 2 and message in command.stderr
    assert [*run.folder.iterdir()] == [link]


def test_names_that_are_no_links_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for name in ("out", "out.parquet", "out/x.parquet"):
        assert real_output(Path(name)) == Path(name)
        assert work_folder_path(Path(name)) == Path(f"{name}.vlmbatch")
    Path("loop").symlink_to("pool")
    Path("pool").symlink_to("loop")
    with pytest.raises(UsageError, match="output loop is a symbolic link that leads nowhere"):
        work_folder_path(Path("loop"))
