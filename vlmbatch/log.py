"""Log records on standard error, as text for people or as JSON lines for machines."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import time
import warnings
from typing import IO, TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from rich.console import Console

LogFormat = Literal["text", "json"]
logger = logging.getLogger("vlmbatch")

_STYLES = {"error": "bold red", "warning": "bold yellow", "debug": "dim"}


class StandardError:
    """``sys.stderr`` for all that is logged and shown: what it does not take is dropped.

    A terminal that is gone, a full disk or a reader that has ended must not end the work.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # beneath a live display


STDERR = StandardError()


@functools.cache
def console() -> Console:
    """Standard error as rich sees it; the live display and the log share it.

    Off a terminal lines are not wrapped: they are for files, and for grep.
    """
    from rich.console import Console

    width = None if sys.stderr.isatty() else 1000
    return Console(file=cast(IO[str], STDERR), highlight=False, width=width)


def stdout_console() -> Console:
    """Standard output as rich sees it, for commands whose table is their result."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def printable(text: str) -> str:
    """``text`` with control characters escaped: names and data of users may hold any."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


class TextHandler(logging.Handler):
    """Prints ``level: message``, above the live display when there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        line = Text()
        if level != "info":
            line.append(f"{level}: ", style=_STYLES.get(level, ""))
        line.append(printable(self.format(record)))
        console().print(line, soft_wrap=True)


class JsonHandler(logging.Handler):
    """Prints one JSON object a record; ``extra={"data": {...}}`` adds its keys to it."""

    def emit(self, record: logging.LogRecord) -> None:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": self.format(record),
            **getattr(record, "data", {}),
        }
        STDERR.write(json.dumps(entry, default=str) + "\n")
        STDERR.flush()


def configure(*, verbose: int = 0, quiet: bool = False, log_format: LogFormat = "text") -> None:
    """Set what reaches standard error, of our own records and of the libraries below.

    ``verbose`` 1 shows our debug records and the traceback of an internal error, 2 those of every
    library and the traceback of any error. ``quiet`` leaves errors only. Call it before the
    libraries are imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they and ours share a terminal
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(JsonHandler() if log_format == "json" else TextHandler())
    root.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose > 1 else logging.WARNING)
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    if verbose < 2:  # what it says of odd files, such as corrupt EXIF, is no news to their user
        warnings.filterwarnings("ignore", module=r"PIL\.")
