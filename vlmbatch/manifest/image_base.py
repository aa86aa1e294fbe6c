"""``--image-base``: the folder or URL where relative paths of images start."""

from __future__ import annotations

import re
from pathlib import Path

from vlmbatch.errors import ConfigError
from vlmbatch.images.urls import AllowedDomains, forbidden_host, host_of
from vlmbatch.remote.filesystem import open_filesystem, scheme_of

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_base_url(base: str, domains: AllowedDomains) -> str | None:
    """The base with a slash at its end where it is a URL; None where it is a path.

    A folder of an object store is one that the user names, and so allowed.

    Raises:
        ConfigError: a URL of this machine, of a host that is not among ``domains``, or of a store
            that cannot be opened.
    """
    found = _SCHEME.match(base)
    if found is None:
        return None
    if found[1].lower() == "file":
        raise ConfigError(f"--image-base {base}: give the folder's path")
    if scheme_of(base) is not None:
        open_filesystem(base)  # what is missing for it is missing for every row
        return f"{base.rstrip('/')}/"
    try:
        host = host_of(base)
    except ValueError as error:
        raise ConfigError(f"--image-base {base}: {error}") from error
    if "?" in base or "#" in base:
        raise ConfigError(f"--image-base {base}: a path cannot follow a ? or #")
    if not domains.allows(host):
        raise ConfigError(f"--image-base {forbidden_host(base, host, domains)}")
    return base if base.endswith("/") else f"{base}/"


def base_folder(base: str) -> Path:
    """The folder, which must be there.

    Raises:
        ConfigError: it is not.
    """
    folder = Path(base)
    try:
        if folder.is_dir():
            return folder
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise ConfigError(f"--image-base {base!r}: {error}") from error
    raise ConfigError(f"--image-base {base}: there is no such folder")
