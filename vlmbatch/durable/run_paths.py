"""Where a run keeps its files, by the name of its output. Nothing is written here.

What may not be looked at counts as not there: whoever opens it tells why it cannot.
"""

# Path's methods raise where those of os.path say False.
# ruff: noqa: PTH110, PTH112, PTH114, PTH116

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.config.part import part_of_name
from vlmbatch.errors import UsageError

RECORD_FILE = "run.json"
LOCK_FILE = "lock"
WORK_SUFFIX = ".vlmbatch"
INSIDE = "_vlmbatch"  # readers of Parquet folders pass names by that begin so, and so do we
_NOT_OUTPUT = (INSIDE, "lost+found")


def real_output(output: Path) -> Path:
    """What ``output`` stands for: where it is a symbolic link, the file or folder that it leads to,
    which need not be there yet.

    Raises:
        UsageError: the link leads round in a circle.
    """
    if not os.path.islink(output):
        return output
    target = Path(os.path.realpath(output))
    if os.path.islink(target):
        raise UsageError(f"output {output} is a symbolic link that leads nowhere: remove it")
    return target


def work_folder_path(output: Path) -> Path:
    """Where the work folder of ``output``, a file or a folder, lies.

    Beside it; inside of a folder that is a disk of its own, or whose parent cannot be written. Such
    a disk may be all that is left when the machine around it is made anew. That of a part lies in
    the folder of the parts, which is shared by machines, under a name that is passed by as well.

    Raises:
        UsageError: ``output`` is a symbolic link that leads nowhere.
    """
    output = real_output(output)
    if part_of_name(output.name) is not None:
        return parts_work_folder(output.parent) / output.stem
    beside, inside = output.with_name(f"{output.name}{WORK_SUFFIX}"), output / INSIDE
    if os.path.isdir(inside):
        return inside
    if os.path.exists(beside / RECORD_FILE) or not _stands_alone(output):
        return beside
    return inside


def parts_work_folder(folder: Path) -> Path:
    """Where the work folders of the parts in ``folder`` lie."""
    return folder / INSIDE


def folders_to_make(output: Path) -> list[Path]:
    """The work folder of ``output``, behind those that are made for it: of a part all, as no task
    knows whether it is the first."""
    output, work = real_output(output), work_folder_path(output)
    return [work] if part_of_name(output.name) is None else [output.parent, work.parent, work]


def temporary_path(path: Path) -> Path:
    """Under which name, in its own folder, a file of the output grows until it is whole."""
    return path.with_name(f".{path.name}{WORK_SUFFIX}.tmp")


def output_of(path: Path) -> Path:
    """The output that ``path``, itself or its work folder, stands for."""
    if path.name == INSIDE and path.is_dir():
        return path.parent
    if path.parent.name == INSIDE and part_of_name(part := f"{path.name}.parquet"):
        return path.parent.parent / part
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
    if not os.path.isdir(folder):
        return False
    parent = folder.parent
    if os.stat(folder).st_dev != os.stat(parent).st_dev:
        return True
    return not os.access(parent, os.W_OK | os.X_OK)
