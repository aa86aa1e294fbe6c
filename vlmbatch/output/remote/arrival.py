"""What is fetched of a run, so that it can be gone on with here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.output.work_folder import WorkFolder, is_output_of
from vlmbatch.remote.versions import ChangedError


def install_run(
    output: Path, record: RunRecord, keys: bytes | None, fetch: Callable[[], None]
) -> None:
    """Make ``output``, of which ``fetch`` writes the content, that of a complete run elsewhere.

    ``keys`` are the digests of its rows, if it has any.

    Raises:
        ChangedError: the content is not of the run.
        OutputError: it cannot be written.
    """
    with WorkFolder(output) as work:
        with reported(output):
            fetch()
            if keys is not None:
                work.keys_path(record).write_bytes(keys)
        if not is_output_of(output, record):
            raise ChangedError(f"{output}: what was fetched is not of the run {record.id}")
        work.begin(record)
