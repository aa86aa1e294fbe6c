from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
from s3_server import S3Server

from vlmbatch.remote.filesystem import RemotePath, open_filesystem

_BUCKETS = itertools.count()


@pytest.fixture(scope="session")
def open_once() -> Callable[[str], RemotePath]:
    """``open_filesystem`` with one file system for all: to make one takes a tenth of a second."""
    first = cache(open_filesystem)

    def open_url(url: str) -> RemotePath:
        scheme, _, path = url.partition("://")
        return first(f"{scheme}://bucket").at(path)

    return open_url


@pytest.fixture
def bucket(
    s3: S3Server, open_once: Callable[[str], RemotePath], monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty bucket of a test's own, which the environment leads to."""
    monkeypatch.setattr("vlmbatch.output.remote.open.open_filesystem", open_once)
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(_BUCKETS)}"
    s3.client.create_bucket(Bucket=name)
    return name
