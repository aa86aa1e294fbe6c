"""Where the outputs of URLs are made on this machine, by URL and --work-dir. Nothing is written
here."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from vlmbatch.config import Part, PartDestination, RemoteDestination

_NAME_CHARACTERS = 40
_DIGEST_DIGITS = 12
_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]+")


def staging_place(url: str, work_dir: Path | None) -> tuple[Path, str]:
    """The folder in which the output of ``url`` is made, and its name there.

    ``work_dir``: absent, the user's cache folder.
    """
    name = _UNUSUAL.sub("-", PurePosixPath(url).stem)[:_NAME_CHARACTERS].strip("-") or "output"
    digest = hashlib.sha256(url.rstrip("/").encode("utf-8", "surrogateescape")).hexdigest()
    work_dir = (work_dir or _cache_folder()).absolute()
    return work_dir / f"{name}-{digest[:_DIGEST_DIGITS]}", name


def remote_part(folder: str, part: Part, work_dir: Path | None) -> RemoteDestination:
    """A part in the folder of a store with the URL ``folder``."""
    url = f"{folder.rstrip('/')}/{part.file_name}"
    staging, name = staging_place(url, work_dir)
    return RemoteDestination(url, staging, PartDestination(staging / name, part))


def _cache_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vlmbatch" / "outputs"
