"""Results to files of text, pages of a document joined."""

from __future__ import annotations

from vlmbatch.manifest.page_names import page_of
from vlmbatch.output.parquet_writer import ResultWriter
from vlmbatch.output.text_folder import TextFolder
from vlmbatch.output.text_names import text_name
from vlmbatch.types import Result


class TextWriter:
    """Writes each answer to its file; rows with errors have none.

    Pages of a document come one after another, and are written as one file when it is through; a
    page without an answer is a comment in it.

    Raises:
        OutputError: by every method, when the file system refuses.
    """

    def __init__(self, folder: TextFolder) -> None:
        self._folder = folder
        self._document: str | None = None
        self._pages: list[str] = []
        self._has_answers = False

    def write(self, result: Result) -> None:
        page = page_of(result.id)
        if page is None or page[0] != self._document:
            self.finish()
        if page is not None:
            self._document, number = page
            self._has_answers |= result.text is not None
            missing = f"<!-- page {number}: no answer -->"
            self._pages.append(missing if result.text is None else result.text)
        elif result.text is not None:
            self._folder.write(text_name(result.id), result.text)

    def finish(self) -> None:
        """No row of the document comes any more."""
        if self._document is not None and self._has_answers:
            self._folder.write(text_name(f"{self._document}#1"), "\n\n".join(self._pages))
        self._document, self._pages, self._has_answers = None, [], False


class ResultTee:
    """A writer whose results become files of text as well."""

    def __init__(self, writer: ResultWriter, texts: TextWriter) -> None:
        self._writer = writer
        self._texts = texts

    def write(self, result: Result) -> None:
        self._texts.write(result)
        self._writer.write(result)

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
