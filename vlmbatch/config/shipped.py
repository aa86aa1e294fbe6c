"""Configurations and chat templates that come with vlmbatch and are called by name.

They are the files of ``configs/`` at the top of the repository, which ``vlmbatch/configs`` links
to, and of which the wheel has copies.
"""

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.errors import ConfigError

_FOLDER = Path(__file__).parents[1] / "configs"
_KINDS = {".toml": "configuration", ".jinja": "chat template"}


def find_config(name: str | os.PathLike[str]) -> Path:
    """The configuration file of a name such as "llava-1.5-7b", or ``name`` itself if it is a path.

    Raises:
        ConfigError: neither a file nor one of the names, which the message lists.
    """
    return _find(Path(name), ".toml")


def is_config(name: str) -> bool:
    """Whether a configuration of this name comes with vlmbatch."""
    return name in _files(".toml")


def find_chat_template(name: str | os.PathLike[str]) -> Path:
    """The chat template of a name such as "llava-1.5", or ``name`` itself if it is a path.

    Raises:
        ConfigError: neither a file nor one of the names, which the message lists.
    """
    return _find(Path(name), ".jinja")


def _find(path: Path, suffix: str) -> Path:
    files = _files(suffix)
    is_name = path.name == str(path) and path.suffix != suffix
    if is_name and str(path) in files and not path.is_file():  # a folder may be a checkpoint's
        return files[str(path)]
    if _is_there(path):
        return path
    kind = _KINDS[suffix]
    if is_name:
        raise ConfigError(
            f"there is no {kind} '{path}': give a file, or one of the names {', '.join(files)}"
        )
    if path.suffix == suffix and path.stem in files:
        raise ConfigError(
            f"there is no file {path}; {path.stem}, without a folder or an ending, is the {kind} "
            "that comes with vlmbatch"
        )
    return path


def _files(suffix: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted(_FOLDER.glob(f"*{suffix}"))}


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):  # what reads the file says why it cannot
        return False
    return True
