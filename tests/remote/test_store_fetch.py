"""Images of a store: within bounds, whatever it does; each failure is the row's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_server import ObjectServer

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.images.buckets import AllowedBuckets
from vlmbatch.images.fetch import FetchLimits
from vlmbatch.images.fetch_budget import FetchBudget, LargerError
from vlmbatch.images.loading.shared_fetches import SharedFetches
from vlmbatch.images.store_fetch import STORE_LIMITS, StoreFetcher
from vlmbatch.images.url_fetcher import UrlFetcher
from vlmbatch.images.urls import AllowedDomains, ImageUrls

IMAGE = bytes(range(256)) * 20


def failure(key: str, limits: FetchLimits = STORE_LIMITS) -> RowError:
    fetcher = StoreFetcher(limits)
    with pytest.raises(RowError) as caught:
        fetcher.fetch(f"s3://photos/{key}")
    assert f"s3://photos/{key}" in caught.value.message
    return caught.value


def test_an_object_is_one_request(store: ObjectServer) -> None:
    store.objects = {"photos/a b#?é.jpg": IMAGE, "photos/b.jpg": IMAGE[:9]}
    fetcher = StoreFetcher()
    assert fetcher.fetch("s3://photos/a b#?é.jpg") == IMAGE
    assert fetcher.fetch("s3://photos/b.jpg") == IMAGE[:9]
    assert store.requests == ["GET photos/a b#?é.jpg", "GET photos/b.jpg"]


def test_of_an_object_no_more_is_read_than_there_is_room_for(store: ObjectServer) -> None:
    """It is asked for again with more; there is no response that tells its size before."""
    store.objects = {"photos/a.jpg": IMAGE, "photos/b.jpg": IMAGE[:100]}
    small, fetcher = FetchLimits(max_bytes=1000), StoreFetcher()
    room = FetchBudget(8 * 100).reserve()
    assert room.num_bytes == 100
    assert fetcher.fetch("s3://photos/b.jpg", room) == IMAGE[:100]
    for asked in (400, 1600, 6400):
        with pytest.raises(LargerError) as caught:
            fetcher.fetch("s3://photos/a.jpg", room)
        assert caught.value.num_bytes == asked
        room.num_bytes = asked
    assert fetcher.fetch("s3://photos/a.jpg", room) == IMAGE
    with pytest.raises(RowError, match="limit of 1000 bytes"):
        StoreFetcher(small).fetch("s3://photos/a.jpg", room)
    fetches = SharedFetches(UrlFetcher(AllowedDomains(), 2**20), 800)
    assert fetches.fetch("s3://photos/a.jpg") == IMAGE


def test_the_start_of_an_object(store: ObjectServer) -> None:
    store.objects = {"photos/a.jpg": IMAGE, "photos/b.jpg": IMAGE[:9], "photos/c.jpg": b""}
    fetcher = StoreFetcher()
    assert fetcher.fetch_start("s3://photos/b.jpg", 100) == IMAGE[:9]
    assert store.requests == ["GET photos/b.jpg"]
    assert fetcher.fetch_start("s3://photos/a.jpg", 100) == IMAGE[:100]
    small = StoreFetcher(FetchLimits(max_bytes=1000))
    for key, code in (
        ("a.jpg", ErrorCode.IMAGE_TOO_LARGE),  # all of it would be
        ("c.jpg", ErrorCode.IMAGE_UNREADABLE),
        ("gone.jpg", ErrorCode.IMAGE_MISSING),
        ("forbidden/a.jpg", ErrorCode.IMAGE_FETCH_FAILED),
    ):
        with pytest.raises(RowError) as caught:
            small.fetch_start(f"s3://photos/{key}", 100)
        assert caught.value.code == code and f"s3://photos/{key}" in caught.value.message


@pytest.mark.parametrize(
    ("key", "code", "says"),
    [
        ("gone.jpg", ErrorCode.IMAGE_MISSING, "nothing there"),
        ("forbidden/a.jpg", ErrorCode.IMAGE_FETCH_FAILED, "access is denied"),
        ("empty.jpg", ErrorCode.IMAGE_UNREADABLE, "empty (0 bytes)"),
    ],
)
def test_what_a_store_refuses(store: ObjectServer, key: str, code: ErrorCode, says: str) -> None:
    store.objects = {"photos/empty.jpg": b""}
    error = failure(key)
    assert error.code == code
    assert says in error.message


def test_a_store_that_stalls(store: ObjectServer) -> None:
    error = failure("stalls/a.jpg", FetchLimits(timeout_s=0.2))
    assert error.code == ErrorCode.IMAGE_FETCH_FAILED
    assert "took longer than 0.2 seconds" in error.message


@pytest.mark.parametrize("key", ["cut/a.jpg", "busy/a.jpg"])
def test_what_fails_once_is_tried_again(store: ObjectServer, key: str) -> None:
    store.objects = {f"photos/{key}": IMAGE}
    store.failures = {f"photos/{key}": 1}
    assert StoreFetcher().fetch(f"s3://photos/{key}") == IMAGE


def test_bytes_have_a_limit(store: ObjectServer) -> None:
    store.objects = {"photos/a.jpg": IMAGE}
    error = failure("a.jpg", FetchLimits(max_bytes=1000))
    assert error.code == ErrorCode.IMAGE_TOO_LARGE
    assert "1000 bytes" in error.message


@pytest.mark.parametrize(
    ("allowed", "url", "is_allowed"),
    [
        ("s3://photos", "s3://photos/a.jpg", True),
        ("s3://photos/", "S3://photos/2026/a.jpg", True),
        ("s3://photos/2026", "s3://photos/2026/a.jpg", True),
        ("s3://photos/2026", "s3://photos/2026-secret/a.jpg", False),
        ("s3://photos", "s3://photos-of-others/a.jpg", False),
        ("s3://photos/2026", "s3://photos/2026/../a.jpg", False),
        ("s3://photos", "gs://photos/a.jpg", False),
        ("hf://datasets/a/b", "hf://datasets/a/b/x.jpg", True),
        ("az://box@one.blob.core.windows.net", "az://box@two.blob.core.windows.net/a.jpg", False),
    ],
)
def test_which_buckets_are_read(allowed: str, url: str, is_allowed: bool) -> None:
    urls = ImageUrls(buckets=AllowedBuckets.of([allowed]))
    if is_allowed:
        assert urls.read(url, "").url is not None
        return
    with pytest.raises(RowError) as caught:
        urls.read(url, "")
    assert caught.value.code == ErrorCode.IMAGE_FORBIDDEN


@given(st.sampled_from(["s3://", "S3://", "s3a://", "az://", "//", ""]), st.text("p/.:@\\?#a\0"))
def test_no_text_leads_out_of_a_bucket(head: str, rest: str) -> None:
    urls = ImageUrls(buckets=AllowedBuckets.of(["s3://p/a"]))
    try:
        url = urls.read(head + rest, "").url
    except RowError:
        return
    assert url is not None and url.startswith("s3://p/a/") and ".." not in url.split("/")


def test_a_server_reads_no_bucket_unless_told() -> None:
    for url in ("s3://photos/a.jpg", "memory://a.jpg", "file:///etc/passwd", "local://x"):
        with pytest.raises(RowError) as caught:
            ImageUrls().read(url, "messages[0]")
        assert caught.value.code == ErrorCode.IMAGE_FORBIDDEN


@pytest.mark.parametrize("url", ["photos", "https://photos/", "file:///photos", "s3://", "s3:///a"])
def test_what_is_no_bucket(url: str) -> None:
    with pytest.raises(ConfigError, match="--allow-bucket"):
        AllowedBuckets.of([url])


@pytest.mark.parametrize(
    ("url", "bucket"),
    [
        ("s3://photos/2026/a.jpg", "s3://photos"),
        ("hf://datasets/a/b/data/x.parquet", "hf://datasets/a/b"),
        ("hf://a/b/x.parquet", "hf://a/b"),
    ],
)
def test_the_bucket_of_a_manifest_is_allowed(url: str, bucket: str) -> None:
    allowed = AllowedBuckets().and_also(url)
    assert allowed.urls == {bucket}
    assert allowed.allows(f"{bucket}/x.jpg") and not allowed.allows(f"{bucket}x/x.jpg")
