"""What file systems and their libraries raise, as a few errors of our own."""

from __future__ import annotations

import errno

from vlmbatch.errors import VlmbatchError
from vlmbatch.remote.stores import Store

_SHOWN_CHARACTERS = 300
_MISSING = (404, 410)
_FORBIDDEN = (401, 403)
_PASSING = (408, 425, 429)  # of those below 500: what may be tried again
_LASTING = frozenset(
    {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
)


class RemoteError(VlmbatchError):
    """A store refused a request, and would again; the message begins with the URL."""

    exit_status = 74


class RemoteMissingError(RemoteError):
    """There is no such object, folder or bucket."""


class RemoteForbiddenError(RemoteError):
    """The store wants other credentials than there are, or any."""


class RemoteFailedError(RemoteError):
    """The store could not be reached, stalled or failed, also when tried again; it may be later."""


def translated(error: Exception, url: str, store: Store) -> RemoteError:
    """What a file system of ``store`` has raised at ``url``, as one of ours."""
    status = http_status(error)
    if store.refuses(error) or isinstance(error, PermissionError) or status in _FORBIDDEN:
        access = store.access and f" ({store.access})"
        return RemoteForbiddenError(f"{url}: access is denied: {short(error)}{access}")
    if isinstance(error, FileNotFoundError) or status in _MISSING:
        said = short(error)
        more = "" if url.partition("://")[2].rstrip("/") in said else f" ({said})"
        return RemoteMissingError(f"{url}: there is nothing there{more}")
    if isinstance(error, TimeoutError) and not str(error):
        return RemoteFailedError(f"{url}: no answer for too long")
    if _lasts(error, status):
        return RemoteError(f"{url}: {short(error)}")
    return RemoteFailedError(f"{url}: {short(error)}")


def _lasts(error: Exception, status: int | None) -> bool:
    """Whether another attempt would end as this one."""
    if status is not None:
        return 300 <= status < 500 and status not in _PASSING
    if isinstance(error, OSError):
        return error.errno in _LASTING
    return isinstance(error, ValueError | NotImplementedError)


def http_status(error: BaseException | None) -> int | None:
    """The HTTP status that an error or one of its causes tells of."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore's
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None)
        for name in ("status_code", "status", "code"):
            found = found or getattr(error, name, None)
        if str(found).isdigit():
            return int(str(found))
        error = error.__cause__
    return None


def short(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
