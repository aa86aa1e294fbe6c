"""Reports of a command as files, refused before any work begins where none could be written."""

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.commands.path_errors import path_errors
from vlmbatch.commands.places import is_stream
from vlmbatch.commands.urls import refuse_url
from vlmbatch.errors import UsageError
from vlmbatch.remote.filesystem import open_filesystem, scheme_of


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


def check_summary_file(path: str | None, output: str | None = None) -> None:
    """Refuse now where the figures could not be written at the end, in a store or on this machine.

    Raises:
        UsageError: nothing can be there, or it is the ``output`` itself.
        RemoteError: the store would not take it, or cannot be reached.
    """
    if path is None or scheme_of(path) is None:
        check_report_file("--summary-json", path)
        return
    if path == output:
        raise UsageError(f"--summary-json {path} is output {output}: choose another name")
    if path.endswith("/") or scheme_of(path) == "hf":
        what = "names a folder" if path.endswith("/") else "is on the Hub, which takes commits"
        raise UsageError(f"--summary-json {path} {what}: give a file, as in s3://BUCKET/run.json")
    from vlmbatch.remote.puts import check_writable

    check_writable(open_filesystem(path))


def checked_page(page: str | None, output: str, *, overwrite: bool) -> Path:
    """Where a page goes, refused before an output is read.

    Raises:
        UsageError: none given, or no page can be there, or something is in the way.
    """
    if page is None:
        raise UsageError(f"no page given: add -o {Path(output).name.partition('.')[0]}.html")
    refuse_url("page", page)
    path = Path(page)
    if path.suffix not in (".html", ".htm") or is_stream(page):
        raise UsageError(f"page {page}: choose the name of a file that ends in .html")
    check_report_file("--page", page)
    with path_errors(f"page {page}"):
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"page {page} exists: add --overwrite to replace it")
    return path
