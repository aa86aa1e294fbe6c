"""``--image-base``: the folder or URL where relative paths of images start."""

from __future__ import annotations

import re
from pathlib import Path

from vlmbatch.errors import ConfigError
from vlmbatch.images.urls import AllowedDomains, forbidden_host, host_of

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_base_url(base: str, domains: AllowedDomains) -> str | None:
    """The base with a slash at its end where it is an http(s) URL; None where it is a path.

    Raises:
        ConfigError: a URL of another kind, or of a host that is not among ``domains``.
    """
    found = _SCHEME.match(base)
    if found is None:
        return None
    if found[1].lower() not in ("http", "https"):
        raise ConfigError(f"--image-base {base}: give a folder, or an http:// or https:// URL")
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
