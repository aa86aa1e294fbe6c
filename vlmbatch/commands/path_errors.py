"""What the system says of a path that a user has given, as a usage error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlmbatch.errors import UsageError


@contextmanager
def path_errors(what: str) -> Iterator[None]:
    """For looking at the path of ``what``, as in "output a.parquet".

    Raises:
        UsageError: it may not be looked at, or cannot be a path.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what} cannot be looked at: {error.strerror}") from error
    except ValueError as error:  # a NUL character
        raise UsageError(f"{what!r} is no path: {error}") from error
