"""Reports of a command as files, refused before any work begins where none could be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbatch.commands.path_errors import path_errors
from vlmbatch.commands.places import is_stream
from vlmbatch.commands.urls import check_object, is_url, refuse_url
from vlmbatch.errors import UsageError

if TYPE_CHECKING:
    from vlmbatch.output.remote.stored_file import StoredFile
    from vlmbatch.remote.filesystem import RemotePath

_REPORT_EXAMPLES = {
    "--errors": "s3://BUCKET/errors.jsonl",
    "--json": "s3://BUCKET/bench.json",
    "--summary-json": "s3://BUCKET/run.json",
}


def check_report_file(option: str, path: str | None) -> None:
    """Refuse now what could not be written at the end.

    Raises:
        UsageError: the path of ``option`` is a folder, or is in none.
    """
    refuse_url(option, path)
    if path is None or path == "-":
        return
    with path_errors(f"{option} {path}"):
        if Path(path).is_dir():
            raise UsageError(f"{option} {path} is a folder: name a file in it")
        if not Path(path).parent.is_dir():
            raise UsageError(
                f"{option} {path}: there is no folder {Path(path).parent}; create it first"
            )


def check_report(option: str, path: str | None) -> None:
    """Refuse now what could not be written at the end, in a store or on this machine.

    Raises:
        UsageError: nothing can be there.
        RemoteError: the store would not take it, or cannot be reached.
    """
    if path is not None and is_url(path):
        check_object(option, path, _REPORT_EXAMPLES[option])
    else:
        check_report_file(option, path)


def checked_page(page: str | None, output: str, *, overwrite: bool) -> Path | StoredFile:
    """Where a page goes, refused before an output is read.

    Raises:
        UsageError: none given, or no page can be there, or something is in the way.
        RemoteError: the store would not take it, or cannot be reached.
    """
    if page is None:
        raise UsageError(f"no page given: add -o {Path(output).name.partition('.')[0]}.html")
    path = Path(page)
    if path.suffix not in (".html", ".htm") or (not is_url(page) and is_stream(page)):
        raise UsageError(f"page {page}: choose the name of a file that ends in .html")
    if is_url(page):
        place = check_object("page", page, "s3://BUCKET/page.html")
        return _stored_page(place, overwrite=overwrite)
    check_report_file("--page", page)
    with path_errors(f"page {page}"):
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"page {page} exists: add --overwrite to replace it")
    return path


def _stored_page(place: RemotePath, *, overwrite: bool) -> StoredFile:
    from vlmbatch.output.remote.stored_file import StoredFile

    page = StoredFile.at(f"page {place.url}", place)
    if page.base is not None and not overwrite:
        raise UsageError(f"page {page} exists: add --overwrite to replace it")
    return page
