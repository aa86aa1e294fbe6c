"""Where a URL is given in the place of a path."""

from __future__ import annotations

from vlmbatch.errors import UsageError
from vlmbatch.remote.filesystem import scheme_of


def is_url(name: str) -> bool:
    """Whether it is of a place in a store or on a web server, and no path."""
    return scheme_of(name) is not None or name.lower().startswith(("http://", "https://"))


def refuse_url(option: str, value: str | None) -> None:
    """Refuse one where a path of this machine is needed.

    Raises:
        UsageError: names the option.
    """
    if value is not None and is_url(value):
        where = "on a web server" if scheme_of(value) is None else "in a store"
        raise UsageError(
            f"{option} {value} is {where}, and is not written there: give a path, and copy it "
            "afterwards"
        )
