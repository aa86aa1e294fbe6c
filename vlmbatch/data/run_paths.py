"""Where a run keeps its files, by the name of its output. Nothing is written here."""

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.errors import UsageError

RECORD_FILE = "run.json"
LOCK_FILE = "lock"
WORK_SUFFIX = ".vlmbatch"
_INSIDE = "_vlmbatch"  # readers of Parquet folders pass names by that begin so, and so do we
_NOT_OUTPUT = (_INSIDE, "lost+found")


def real_output(output: Path) -> Path:
    """What ``output`` stands for: where it is a symbolic link, the file or folder that it leads to,
    which need not be there yet.

    Raises:
        UsageError: the link leads round in a circle.
    """
    if not output.is_symlink():
        return output
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise UsageError(f"output {output} is a symbolic link that leads nowhere: remove it")
    return target


def work_folder_path(output: Path) -> Path:
    """Where the work folder of ``output``, a file or a folder, lies.

    Beside it; inside of a folder that is a disk of its own, or whose parent cannot be written. Such
    a disk may be all that is left when the machine around it is made anew.

    Raises:
        UsageError: ``output`` is a symbolic link that leads nowhere.
    """
    output = real_output(output)
    beside, inside = output.with_name(f"{output.name}{WORK_SUFFIX}"), output / _INSIDE
    if inside.is_dir():
        return inside
    if (beside / RECORD_FILE).exists() or not _stands_alone(output):
        return beside
    return inside


def output_of(path: Path) -> Path:
    """The output that ``path``, itself or its work folder, stands for."""
    if path.name == _INSIDE and path.is_dir():
        return path.parent
    if path.name.endswith(WORK_SUFFIX) and path.is_dir():
        return path.with_name(path.name.removesuffix(WORK_SUFFIX))
    return path


def holds_something(output: Path) -> bool:
    """Whether a file or anything in a folder, other than a work folder, is there."""
    if output.is_dir():
        return any(path.name not in _NOT_OUTPUT for path in output.iterdir())
    return output.exists()


def _stands_alone(folder: Path) -> bool:
    """Whether it is a folder on another disk than its parent, or of one that cannot be written."""
    if not folder.is_dir():
        return False
    parent = folder.parent
    if os.stat(folder).st_dev != os.stat(parent).st_dev:  # noqa: PTH116 - tests patch it
        return True
    return not os.access(parent, os.W_OK | os.X_OK)
