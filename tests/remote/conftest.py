from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest
from model_folder import make_model_folder
from object_server import ObjectServer, access
from s3_server import S3Server

if TYPE_CHECKING:
    from s3fs import S3FileSystem

Put = Callable[[str, bytes], str]


@pytest.fixture(scope="session")
def s3_buckets(s3: S3Server) -> S3FileSystem:
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in access(s3.url).items():
            patch.setenv(name, value)
        filesystem = S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        filesystem.ls("")  # which begins its session
    return filesystem


@pytest.fixture
def put_s3(
    s3: S3Server, s3_buckets: S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Put:
    """Write an object to a bucket of the test's own in S3, by moto; its URL."""
    for name, value in access(s3.url).items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower().strip("-")
    s3_buckets.mkdir(bucket)

    def put(key: str, content: bytes) -> str:
        s3_buckets.pipe_file(f"{bucket}/{key}", content)
        return f"s3://{bucket}/{key}"

    return put


@pytest.fixture
def put() -> Iterator[Put]:
    """Write an object to fsspec's store in memory; its URL."""
    filesystem = fsspec.filesystem("memory")

    def put(key: str, content: bytes) -> str:
        filesystem.pipe_file(f"/bucket/{key}", content)
        return f"memory:///bucket/{key}"

    yield put
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A store of our own that can misbehave."""
    with ObjectServer().serving() as server:
        for name, value in access(server.url).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")
