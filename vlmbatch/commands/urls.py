"""Where a URL is given in the place of a path."""

from __future__ import annotations

from vlmbatch.errors import UsageError
from vlmbatch.remote.filesystem import RemotePath, open_filesystem, scheme_of

_LOCAL_SCHEMES = ("file", "local")


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


def store_scheme(what: str, url: str, example: str) -> str:
    """The scheme of a URL at which ``what`` can be put, as at ``example``.

    Raises:
        UsageError: it is of no store, or names no place there.
    """
    scheme = scheme_of(url)
    if scheme is None:
        raise UsageError(
            f"{what} {url}: web servers take no files. Give an object store, such as {example}, or "
            "a path"
        )
    place = url.partition("://")[2]
    if scheme in _LOCAL_SCHEMES:
        option = "-o" if what == "output" else what
        raise UsageError(f"{what} {url}: give the path alone, as in {option} {place}")
    if not place.strip("/") or "\0" in url:
        raise UsageError(f"{what} {url!r}: give a place in the store, as in {example}")
    return scheme


def object_scheme(what: str, url: str, example: str) -> str:
    """As ``store_scheme``, of what is put file by file.

    Raises:
        UsageError: besides, it is on the Hub.
    """
    scheme = store_scheme(what, url, example)
    if scheme == "hf":
        raise UsageError(
            f"{what} {url}: the Hub takes commits, and not file by file: give an object store, "
            f"such as {example}, or a path"
        )
    return scheme


def check_object(what: str, url: str, example: str) -> RemotePath:
    """The place of a URL; refused now where nothing could be put at the end.

    Raises:
        UsageError: nothing can be there.
        RemoteError: the store would not take it, or cannot be reached.
    """
    object_scheme(what, url, example)
    if url.endswith("/"):
        raise UsageError(f"{what} {url} names a folder: give a file, as in {example}")
    from vlmbatch.remote.puts import BUCKET_SCHEMES, allow_slow_puts, check_writable

    place = open_filesystem(url)
    if place.scheme in BUCKET_SCHEMES and "/" not in place.path.strip("/"):
        raise UsageError(f"{what} {url} names a bucket: give a file in it, as in {example}")
    allow_slow_puts(place)
    check_writable(place)
    return place
