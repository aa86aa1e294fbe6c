"""Puts to Google's and Azure's stores, by stand-ins for gcsfs and adlfs: what is asked of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in_stores import Azure, Google, StandIn, place_in

from vlmbatch.errors import UsageError
from vlmbatch.remote import file_parts
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.puts import check_writable, put_object
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, version_of

PART_BYTES = 10
SIZES = {"small": 7, "empty": 0, "large": 3 * PART_BYTES + 2}
STORES = {"gs": Google, "az": Azure}


@pytest.fixture(params=STORES)
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    conditions = SimpleNamespace(IfMissing="missing", IfNotModified="unmodified")
    monkeypatch.setitem(sys.modules, "azure", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "azure.core", SimpleNamespace(MatchConditions=conditions))
    monkeypatch.setattr(file_parts, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(file_parts, "THREADS", 1)
    found: str = request.param
    return found


@pytest.fixture
def store(scheme: str) -> StandIn:
    return STORES[scheme]()


@pytest.fixture
def log(tmp_path: Path) -> UploadLog:
    return UploadLog(tmp_path / "uploads.json")


@pytest.fixture(params=SIZES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(SIZES[request.param])))
    return file


def test_only_in_the_place_of_what_is_expected(
    scheme: str, store: StandIn, source: Path, log: UploadLog
) -> None:
    path, counted = place_in(scheme, store), [0]
    check_writable(path)
    first = put_object(source, path, None, log, counted.append)
    assert version_of(path) == first and sum(counted) == source.stat().st_size
    assert store.objects["a b"] == (first, source.read_bytes())
    for expected in (None, "v99"):
        with pytest.raises(ChangedError):
            put_object(source, path, expected, log, counted.append)
    source.write_bytes(b"new")
    second = put_object(source, path, first, log, counted.append)
    assert store.objects["a b"] == (second, b"new") and log.get(path.url) is None


@pytest.mark.parametrize("is_there", [False, True])
def test_the_store_sees_to_it(
    scheme: str, store: StandIn, source: Path, log: UploadLog, is_there: bool
) -> None:
    """Something is put behind the last look, just before the request that makes the object seen."""
    path = place_in(scheme, store)
    expected = store.store("a b", b"earlier") if is_there else None
    last = {"gs": ("multipart", f"bytes 30-31/{SIZES['large']}"), "az": ("commit",)}[scheme]

    def interfere(request: str) -> None:
        if request in last:
            store.store("a b", b"precious")

    store.before = interfere
    with pytest.raises(ChangedError):
        put_object(source, path, expected, log, lambda _: None)
    assert store.objects["a b"][1] == b"precious"


@pytest.mark.parametrize("source", ["large"], indirect=True)
def test_what_is_there_is_not_sent_again(
    scheme: str, store: StandIn, source: Path, log: UploadLog
) -> None:
    path = place_in(scheme, store)
    first, second, last = {
        "gs": ("bytes 0-9/32", "bytes 10-19/32", "bytes 20-29/32"),
        "az": ("00001", "00002", "00003"),
    }[scheme]

    def cut_off(request: str) -> None:
        if request == last:
            raise ConnectionResetError("Connection reset by peer")

    store.before = cut_off
    with pytest.raises(RemoteError, match="Connection reset by peer"):
        put_object(source, path, None, log, lambda _: None)
    assert version_of(path) is None and {first, second} <= {*store.requests}
    store.before = lambda request: None
    store.requests.clear()
    counted = [0]
    put_object(source, path, None, UploadLog(log.path), counted.append)  # of a later process
    assert store.objects["a b"][1] == source.read_bytes() and sum(counted) == SIZES["large"]
    assert last in store.requests and not {first, second} & {*store.requests}


@pytest.mark.parametrize("source", ["large"], indirect=True)
def test_what_is_there_of_another_file_is_not_taken(
    scheme: str, store: StandIn, source: Path, log: UploadLog
) -> None:
    path = place_in(scheme, store)

    def cut_off(request: str) -> None:
        if request in ("commit", "bytes 30-31/32"):
            raise ConnectionResetError("Connection reset by peer")

    store.before = cut_off
    with pytest.raises(RemoteError):
        put_object(source, path, None, log, lambda _: None)
    store.before = lambda request: None
    source.write_bytes(b"1" * 40)
    put_object(source, path, None, log, lambda _: None)
    assert store.objects["a b"][1] == b"1" * 40


def test_a_bucket_that_is_missing(scheme: str, store: StandIn) -> None:
    with pytest.raises(UsageError, match="there is no bucket missing; create it first"):
        check_writable(place_in(scheme, store, "missing/a"))
