"""Which run an object is of, by the object itself."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.output.openai_lines import HEAD_BYTES, line_head
from vlmbatch.output.work_folder import RUN_ID_KEY
from vlmbatch.remote.errors import RemoteMissingError
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.versions import read_end, size_of

_FOOTER_BYTES = 2**16  # of most files: else it is read once more, in its length
_LENGTH_BYTES = 8  # the footer's length and PAR1, at the end


def read_remote_footer(path: RemotePath) -> pq.FileMetaData | None:
    """An object's footer; None where it is no Parquet file, or there is no such object.

    Raises:
        RemoteError: the store cannot be asked.
    """
    try:
        end = read_end(path, _FOOTER_BYTES)
        if end[-4:] != b"PAR1" or len(end) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(end[-8:-4], "little") + _LENGTH_BYTES
        if length > len(end):
            end = read_end(path, length)
    except RemoteMissingError:
        return None
    try:
        return pq.read_metadata(pa.BufferReader(end))
    except (pa.ArrowException, OSError):
        return None


def parquet_run_id(path: RemotePath) -> str | None:
    """The run id in an object's footer; None where it has none, or there is no such object.

    Raises:
        RemoteError: the store cannot be asked.
    """
    footer = read_remote_footer(path)
    metadata = {} if footer is None else footer.metadata or {}
    run_id = metadata.get(RUN_ID_KEY.encode())
    return None if run_id is None else run_id.decode()


def lines_run_id(path: RemotePath) -> str | None:
    """The run id in an object's first line; None where it has none, or there is no such object.

    Raises:
        RemoteError: the store cannot be asked.
    """
    try:
        end = min(HEAD_BYTES, size_of(path))
        with path.errors():
            head = line_head(path.filesystem.cat_file(path.path, start=0, end=end) if end else b"")
    except RemoteMissingError:
        return None
    return None if head is None else head[0]
