"""Where a remote output is made: a folder on this machine, below --work-dir.

answers-3f2a81c09d7e/
  lock                      held by the process that works on the output
  put.json                  what was at its URL last, and which run was put
  uploads.json              uploads of parts that are under way
  output.parquet            the output, with its work folder beside it, as any local one
  output.parquet.vlmbatch/
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from vlmbatch.config import RemoteDestination
from vlmbatch.durable.durable_file import FILES, DurableFile, publish, reported
from vlmbatch.durable.lock import OutputLock
from vlmbatch.durable.run_paths import RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import OutputError
from vlmbatch.output.remote.target import Found, Seen
from vlmbatch.output.work_folder import is_output_of

_STATE_FILE = "put.json"
LOCK_FILE = "put.lock"


@dataclass(frozen=True, slots=True)
class PutState:
    """``base``: what was at the URL when this machine last looked, and its work replaces.

    ``put``: the id of the run that it has put, or fetched.
    """

    url: str
    base: Found = field(default_factory=dict)
    put: str | None = None


class Staging:
    """The folder of one remote output, created when missing and locked until ``close``.

    Raises:
        OutputLockedError: another process works on the output.
        OutputError: by every method, when the file system refuses.
    """

    def __init__(self, remote: RemoteDestination) -> None:
        self.folder = remote.folder
        self.output = remote.local.path
        self._url = remote.url
        with reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.state = read_state(remote)
        self._lock = OutputLock(self.folder / LOCK_FILE, remote.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def note(self, base: Found, put: str | None) -> None:
        """Keep what is at the URL, and the run that was put there, or fetched, last."""
        self.state = PutState(self._url, base, put)
        path = self.folder / _STATE_FILE
        temporary = path.with_name(f"{path.name}.tmp")
        values = {
            **asdict(self.state),
            "base": {name: asdict(seen) for name, seen in base.items()},
        }
        with reported(path):
            with DurableFile(temporary) as file:
                file.write(json.dumps(values, indent=2).encode())
                file.sync()
            publish(temporary, path, "remote_state", FILES)

    def clear(self) -> None:
        """Remove all but the lock."""
        with reported(self.folder):
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK_FILE:
                    path.unlink()

    def run(self) -> RunRecord | None:
        """The run that is here, as ``local_run`` has it."""
        return local_run(self.output)


def local_run(output: Path) -> RunRecord | None:
    """The run on ``output``, under way or complete; None also when its output is gone.

    Raises:
        OutputError: something that is there cannot be read.
    """
    record = read_record(work_folder_path(output) / RECORD_FILE)
    if record is None or record.state == "running":
        return record
    return record if is_output_of(output, record) else None


def read_state(remote: RemoteDestination) -> PutState:
    """What is noted of the output; nothing, where there is no folder of it.

    Raises:
        OutputError: the file is damaged.
    """
    path = remote.folder / _STATE_FILE
    try:
        values = json.loads(path.read_bytes())
        base = {name: Seen(**seen) for name, seen in values["base"].items()}
        return PutState(remote.url, base, values["put"])
    except FileNotFoundError:
        return PutState(remote.url)
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path} is damaged ({error!r}): remove it and run with --overwrite, or give "
            "another --work-dir"
        ) from error
