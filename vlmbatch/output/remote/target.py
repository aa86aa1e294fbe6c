"""What a remote output is to the run that writes it, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import UsageError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import put_object
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, Sent, version_of


@dataclass(frozen=True, slots=True)
class Seen:
    """One object as it was found. ``run_id``: of the run that it says it is of, if any."""

    version: str  # another one for any other object of its name
    run_id: str | None

    def is_same(self, other: Seen | None) -> bool:
        """Whether it is the other, or of the same run."""
        if other is None:
            return False
        return self.version == other.version or (
            self.run_id is not None and self.run_id == other.run_id
        )


# What stands at an output's URL, by names of the target's own; empty where nothing does.
Found = Mapping[str, Seen]


class Target(Protocol):
    """The place of a remote output, which is put by one run and then replaced whole.

    ``output`` is the local file or folder of its content, with its work folder.

    Raises:
        RemoteError: by every method, when the store refuses or cannot be reached.
    """

    url: str

    def check_access(self) -> None:
        """Find out now, as far as can be without a trace, whether something may be put there."""
        ...

    def look(self) -> Found: ...

    def run_of(self, found: Found) -> str | None:
        """The run whose output is there, in whole or in part; None where it is of no run."""
        ...

    def files(self, output: Path) -> list[Path]:
        """What is put of ``output``, but for what lets the run be resumed."""
        ...

    def num_bytes(self, found: Found) -> int:
        """How much is fetched of it."""
        ...

    def fetch(self, found: Found, output: Path, received: Sent) -> None:
        """Make ``output`` what is there, with a work folder as if its run had been here.

        Raises:
            UsageError: no run on it is known, or it is not whole.
            OutputError: it cannot be written.
        """
        ...

    def put(self, output: Path, record: RunRecord, found: Found, sent: Sent) -> None:
        """Put the finished ``output`` of the run ``record`` in the place of ``found``.

        What an earlier call has put already stays. Until the end ``fetch`` does not take it for
        whole.

        Raises:
            ChangedError: something else has been put there meanwhile.
        """
        ...


class UnknownOutputError(UsageError):
    """What is in an output's place is of no known run; told to who would write there."""


def unknown_output(url: str) -> UnknownOutputError:
    """What the user reads when something is in an output's place that is of no known run."""
    return UnknownOutputError(
        f"output {url} exists, and no run on it is known: add --overwrite to replace it, or choose "
        "another name"
    )


def put_once(
    source: Path,
    path: RemotePath,
    expected: str | None,
    uploads: UploadLog,
    sent: Sent,
    is_own: Callable[[], bool],
) -> str:
    """As ``put_object``, also where an attempt whose reply was lost has put it: ``is_own`` tells.

    Raises:
        ChangedError: something else is there.
        RemoteError: the store refuses, or cannot be reached.
    """
    try:
        return put_object(source, path, expected, uploads, sent)
    except ChangedError:
        version = version_of(path)
        if version is None or not is_own():
            raise
        return version


def put_again(source: Path, path: RemotePath, uploads: UploadLog) -> None:
    """Put a small file under a name that nobody else uses.

    Raises:
        RemoteError: the store refuses, or cannot be reached.
    """
    put_object(source, path, version_of(path), uploads, lambda _: None)
