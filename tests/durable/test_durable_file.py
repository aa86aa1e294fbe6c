"""Files that outlive a crash: what the calls are, and what the user reads when one fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from failing_files import FaultyFiles, VolatileFiles

from vlmbatch.durable.durable_file import FILES, DurableFile, output_error, publish, reported
from vlmbatch.errors import OutputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def survivors(files: VolatileFiles, tmp_path: Path) -> dict[str, bytes]:
    target = tmp_path.with_name(f"{tmp_path.name}-after")
    files.survive(target)
    return {path.name: path.read_bytes() for path in target.iterdir()}


class TestDurableFile:
    def test_what_is_synced_survives_and_no_more(self, path, tmp_path):
        files = VolatileFiles(tmp_path)
        file = DurableFile(path, files)
        files.fsync_folder(tmp_path)
        assert (file.write(b"one"), file.tell()) == (3, 3)
        file.sync()
        file.write(b"two")
        file.close()
        assert path.read_bytes() == b"onetwo"
        assert survivors(files, tmp_path) == {"file": b"one"}

    def test_a_file_that_exists_is_replaced_refused_or_written_over(self, path):
        path.write_bytes(b"much longer")
        with DurableFile(path) as file:
            file.write(memoryview(b"new"))
        assert path.read_bytes() == b"new"
        with pytest.raises(FileExistsError):
            DurableFile(path, flags=os.O_EXCL)
        assert path.read_bytes() == b"new"
        with DurableFile(path, flags=0) as file:
            file.write(b"m")
        assert path.read_bytes() == b"mew"

    def test_a_short_write_is_continued(self, path):
        with DurableFile(path, FaultyFiles(at=1)) as file:
            assert file.write(b"0123456789") == 10
            assert file.tell() == 10
        assert path.read_bytes() == b"0123456789"

    def test_a_disk_that_fills_up_in_the_middle(self, path):
        file = DurableFile(path, FaultyFiles(1, errno.ENOSPC))
        with file, pytest.raises(OSError, match="No space left"):
            file.write(b"0123456789")

    def test_a_file_system_that_takes_nothing(self, path):
        class Full(FaultyFiles):
            def write(self, descriptor: int, data: Any) -> int:
                return 0

        files = Full()
        with DurableFile(path, files) as file, pytest.raises(OSError, match="no more bytes"):
            file.write(b"0")

    def test_a_deleted_file_is_not_synced(self, path):
        with DurableFile(path) as file:
            file.write(b"0")
            path.unlink()
            with pytest.raises(FileNotFoundError):
                file.sync()

    def test_real_calls(self, path, monkeypatch):
        """The others go by way of ``FileSystem``; this is what that does."""
        synced = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        with DurableFile(path.with_name("temporary")) as file:
            file.sync()
            assert os.get_inheritable(file.fileno()) is False
        publish(path.with_name("temporary"), path, "output")
        assert synced == [path.stat().st_ino, path.parent.stat().st_ino]


class TestPublish:
    def test_the_name_survives(self, path, tmp_path):
        path.write_bytes(b"old")
        files = VolatileFiles(tmp_path)
        temporary = tmp_path / "temporary"
        with DurableFile(temporary, files) as file:
            file.write(b"new")
            file.sync()
        publish(temporary, path, "output", files)
        assert survivors(files, tmp_path) == {"file": b"new"}

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_a_folder_that_cannot_be_synced(self, tmp_path, monkeypatch, number):
        def refuse(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        FILES.fsync_folder(tmp_path)

    def test_a_folder_that_fails_to_sync(self, tmp_path, monkeypatch):
        def refuse(descriptor: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            FILES.fsync_folder(tmp_path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EACCES, "Make its folder writable"),
        (errno.EROFS, "Make its folder writable"),
        (errno.ENOENT, "exists and is mounted"),
        (errno.ESTALE, "exists and is mounted"),
        (errno.EIO, "Check the disk"),
        (errno.EMFILE, "has space left"),
    ],
)
def test_message(path, number, advice):
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError) as caught, reported(path):
        refuse()
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be written: {os.strerror(number)}. ")
    assert advice in message and message.endswith("then run again")
    assert caught.value.exit_status == 74


def test_message_without_a_number(path):
    assert "cannot be written: torn. Check that" in str(output_error(path, OSError("torn")))
