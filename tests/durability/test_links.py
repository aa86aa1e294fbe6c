"""Symbolic links that somebody has put where a run's own files belong: never written through."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from resumable_runs import WITH_ERRORS

from vlmbatch.durable.durable_file import DurableFile, output_error
from vlmbatch.durable.lock import OutputLock, lock_holder
from vlmbatch.errors import OutputError
from vlmbatch.output.feature_folder import FeatureFolder, FeatureManifest

NAMES = {  # of a run that was killed, and whether it can be resumed in spite of the link
    ".{output}.vlmbatch.tmp": False,
    "{output}.vlmbatch/lock": False,
    "{output}.vlmbatch/run.json.tmp": False,
    "{output}.vlmbatch/run.json": True,  # it is only read, and replaced
    "{output}.vlmbatch/journal-000001": False,
    "{output}.vlmbatch/keys-*": False,
    "{output}.vlmbatch": False,
    "{output}/.part-000001.parquet.vlmbatch.tmp": True,  # it is removed, as any left over
}


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_the_place_of_a_runs_file(new_run, expected, tmp_path, name):
    """What it leads to holds what the run has written there, so that nothing else gives it away."""
    run = new_run(shard_rows=64 if "part" in name else None)
    assert run.attempt(crash_at="journal.acknowledged:6") == -signal.SIGKILL
    pattern = name.format(output=run.output.name)
    (link,) = run.folder.glob(pattern) if "*" in pattern else [run.folder / pattern]
    victim = tmp_path / "victim"
    if link.exists():
        link.rename(victim)
    else:
        victim.write_text("of somebody else")
    before = contents(victim)
    link.symlink_to(victim)
    command = run.start()
    if NAMES[name]:
        assert command.wait() == WITH_ERRORS and contents(victim) == before
        return
    assert command.wait() == 74, command.stderr
    assert f"error: {link} is a symbolic link" in command.stderr and "remove it" in command.stderr
    assert contents(victim) == before
    link.unlink()
    if victim.is_dir() or victim.read_text(errors="replace") != "of somebody else":
        victim.rename(link)
    run.finish(expected)


@pytest.mark.parametrize("name", [name for name in NAMES if "*" not in name and "part" not in name])
def test_a_pipe_in_the_place_of_a_runs_file(new_run, expected, name):
    """Nobody writes to it or reads from it: whoever waits for that waits for ever."""
    run = new_run()
    assert run.attempt(crash_at="journal.acknowledged:6") == -signal.SIGKILL
    pipe = run.folder / name.format(output=run.output.name)
    if pipe.is_dir():
        return
    aside = pipe.with_name("aside")
    if pipe.exists():
        pipe.rename(aside)
    os.mkfifo(pipe)
    command = run.start()
    assert command.wait() == 74, command.stderr
    assert str(pipe) in command.stderr
    pipe.unlink()
    if aside.exists():
        aside.rename(pipe)
    run.finish(expected)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("target", ["there", "not there"])
def test_no_file_is_opened_through_a_link(tmp_path, target):
    link, victim = tmp_path / "link", tmp_path / "victim"
    if target == "there":
        victim.write_text("of somebody else")
    link.symlink_to(victim)
    with pytest.raises(OutputError, match=f"^{link} is a symbolic link"):
        OutputLock(link, Path("out.parquet"))
    with pytest.raises(OutputError, match=f"^{link} is a symbolic link"):
        lock_holder(link)
    with pytest.raises(OSError, match="symbolic links") as caught:
        DurableFile(link)
    assert str(output_error(Path("out.parquet"), caught.value)).startswith(f"{link} is a symbolic")
    assert [path.read_text() for path in tmp_path.glob("victim")] in ([], ["of somebody else"])


@pytest.mark.parametrize("name", ["features.lock", "manifest.jsonl.tmp"])
def test_a_link_in_a_folder_of_features(tmp_path, name):
    folder, victim = tmp_path / "f", tmp_path / "victim"
    victim.write_text("of somebody else")
    with FeatureFolder(folder):
        pass
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    with (
        pytest.raises(OutputError, match=f"{folder / name} is a symbolic link"),
        FeatureFolder(folder) as features,
    ):
        FeatureManifest(features)
    assert victim.read_text() == "of somebody else"


def test_a_link_in_the_place_of_unfinished_features(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("of somebody else")
    with FeatureFolder(tmp_path / "f") as features:
        link = tmp_path / f"f/features/unfinished/ab1.{os.getpid()}.tmp"
        link.symlink_to(victim)
        with pytest.raises(OutputError, match=f"{link} is a symbolic link"):
            features.write("ab1", b"1")
    assert victim.read_text() == "of somebody else"
    assert not link.is_symlink()
