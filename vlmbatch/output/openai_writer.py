"""OpenAI's batch output: a file of answers, and beside it one of errors where there are any."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vlmbatch.durable.durable_file import FILES, DurableFile, FileSystem, output_error, publish
from vlmbatch.durable.run_paths import temporary_path
from vlmbatch.errors import OutputError
from vlmbatch.manifest.json_text import dump_json
from vlmbatch.output.openai_lines import BatchLines, errors_path
from vlmbatch.types import Result

_BUFFER_BYTES = 2**20


class BatchResultWriter:
    """Writes ``path`` and ``errors_path(path)``, both under temporary names until ``close``.

    The errors get their name first: once the answers have theirs, the output is whole. Without
    errors an earlier run's file of them goes.

    Raises:
        OutputError: by every method, when the file system refuses (full, read-only, gone).
    """

    def __init__(
        self, path: Path, lines: BatchLines, temporary: Path, *, files: FileSystem = FILES
    ) -> None:
        self._lines = lines
        self._files = files
        self._answers = _LineFile(path, temporary, files)
        failed = errors_path(path)
        try:
            self._errors = _LineFile(failed, temporary_path(failed), files)
        except OutputError:
            self._answers.discard()
            raise

    def write(self, result: Result) -> None:
        file = self._answers if result.error_code is None else self._errors
        file.write(self._lines.line(result))

    def close(self) -> None:
        """Make both files durable, then give them their names."""
        self._errors.sync()
        self._answers.sync()
        if self._errors.num_lines:
            self._errors.publish()
        else:
            self._errors.discard()
            self._errors.remove_earlier()
        self._answers.publish()

    def abort(self) -> None:
        """Remove the temporary files; what had the final names before stays as it was."""
        self._answers.discard()
        self._errors.discard()


class _LineFile:
    """JSON lines in a temporary file that is to become ``path``."""

    def __init__(self, path: Path, temporary: Path, files: FileSystem) -> None:
        self.num_lines = 0
        self._path = path
        self._temporary = temporary
        self._files = files
        self._buffer = bytearray()
        try:
            self._file = DurableFile(temporary, files)
        except OSError as error:
            raise output_error(path, error) from error

    def write(self, values: dict[str, object]) -> None:
        # Lone surrogates, from a file name that is not UTF-8, become question marks.
        self._buffer += dump_json(values).encode("utf-8", "replace") + b"\n"
        self.num_lines += 1
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def sync(self) -> None:
        self._flush()
        try:
            self._file.sync()
        except OSError as error:
            raise output_error(self._path, error) from error
        self._file.close()

    def publish(self) -> None:
        try:
            publish(self._temporary, self._path, "output", self._files)
        except OSError as error:
            raise output_error(self._path, error) from error

    def remove_earlier(self) -> None:
        try:
            if self._path.exists():
                self._files.unlink(self._path)
                self._files.fsync_folder(self._path.parent)
        except OSError as error:
            raise output_error(self._path, error) from error

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # it may have its final name, or stay where it is
            self._files.unlink(self._temporary)

    def _flush(self) -> None:
        try:
            self._file.write(self._buffer)
        except OSError as error:
            raise output_error(self._path, error) from error
        self._buffer.clear()
