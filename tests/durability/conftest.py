from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fast_command import FastCommands
from model_folder import make_model_folder
from resumable_runs import WITH_ERRORS, ResumableRun, read_rows, write_manifest

NUM_ROWS = 300


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastCommands]:
    with FastCommands(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest") / "manifest.jsonl", NUM_ROWS)


@pytest.fixture
def new_run(
    commands: FastCommands, tmp_path_factory: pytest.TempPathFactory, manifest: Path, model: Path
) -> Callable[..., ResumableRun]:
    """Start from nothing, in a folder of its own."""

    def new(
        manifest: Path = manifest, model: Path = model, folder: Path | None = None, **options: Any
    ) -> ResumableRun:
        options = {"group_rows": 16, "row_group_rows": 64, **options}
        folder = folder or tmp_path_factory.mktemp("run")
        return ResumableRun(commands, folder, manifest, model, **options)

    return new


@pytest.fixture(scope="session")
def expected(
    commands: FastCommands, tmp_path_factory: pytest.TempPathFactory, manifest: Path, model: Path
) -> list[dict[str, Any]]:
    """The rows of a run that nothing disturbed."""
    run = ResumableRun(commands, tmp_path_factory.mktemp("undisturbed"), manifest, model)
    assert run.attempt() == WITH_ERRORS
    rows = read_rows(run.output)
    assert [row["id"] for row in rows] == [f"row-{index}" for index in range(NUM_ROWS)]
    assert len({row["text"] for row in rows}) > NUM_ROWS // 4, "answers can hardly be told apart"
    return rows


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can get at, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def user() -> int:
    """Somebody without permissions."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody without permissions")
    return 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    yield from mounted(tmp_path / "disk", "1m")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, alone in a folder."""
    (tmp_path / "machine").mkdir()
    yield from mounted(tmp_path / "machine" / "out", "32m")


def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
