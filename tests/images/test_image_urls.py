"""``image_url`` values: data, allowed hosts, paths, and what is none of them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.images.urls import AllowedDomains, ImageUrls, host_of

DOMAINS = AllowedDomains.of(["Images.Example.org", "*.cdn.example", "bücher.example"])
SERVER = ImageUrls(DOMAINS)
BATCH = ImageUrls(DOMAINS, Path("/base"))


def code_of(url: str, urls: ImageUrls = SERVER) -> ErrorCode:
    with pytest.raises(RowError) as caught:
        urls.read(url, "messages[0]")
    return caught.value.code


@given(st.binary(min_size=1))
def test_data(data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    for head in ("data:image/png;base64,", "DATA:;BASE64,", "data:image/svg+xml;charset=x;base64,"):
        ref = SERVER.read(head + encoded, "messages[0]")
        assert ref.data == data
        assert ref.url is None
        assert "messages[0]" in (ref.path or "")
    assert SERVER.read("data:image/png;base64," + encoded.replace("=", "%3D"), "").data == data


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,abcd",
        "data:text/html;base64,aaaa",
        "data:image/png;base64,a",
        "data:image/png;base64,aaaa\n",
        "data:image/png;base64,aa=a",
        "data:image/png;base64,____",
        "data:image/png;base64,ééé=",
    ],
)
def test_bad_data(url: str) -> None:
    assert code_of(url) == "image_invalid"


def test_the_size_of_data_is_bounded_before_it_is_decoded() -> None:
    urls = ImageUrls(max_data_bytes=5)
    for size in range(1, 6):
        assert urls.read("data:;base64," + base64.b64encode(b"x" * size).decode(), "").data
    assert code_of("data:;base64," + base64.b64encode(b"x" * 6).decode(), urls) == "image_too_large"


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.org/a.png",
        "http://IMAGES.example.org.:8080/a.png?b=c",
        "https://a.cdn.example/x",
        "https://a.b.cdn.example/x",
        "https://bücher.example/x",
        "https://xn--bcher-kva.example/x",
    ],
)
def test_allowed_hosts(url: str) -> None:
    ref = SERVER.read(url, "")
    assert (ref.url, ref.path, ref.data) == (url, None, None)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.org/a.png", "image_forbidden"),
        ("https://sub.images.example.org/a.png", "image_forbidden"),
        ("https://cdn.example/a.png", "image_forbidden"),
        ("https://evilcdn.example/a.png", "image_forbidden"),
        ("https://images.example.org.evil.net/", "image_forbidden"),
        ("https://evil.net#images.example.org", "image_forbidden"),
        ("https://evil.net?@images.example.org/", "image_forbidden"),
        ("https://images.example.org@evil.net/", "image_invalid"),
        ("https://me:pw@images.example.org/", "image_invalid"),
        ("https://images.example.org\\@evil.net/", "image_invalid"),
        ("https://images.example.org:99999/", "image_invalid"),
        ("https://images.example.org:0/", "image_invalid"),
        ("https://.cdn.example/", "image_invalid"),
        ("https://a..cdn.example/", "image_invalid"),
        ("https://a.cdn.example../", "image_invalid"),
        ("https:///a.png", "image_invalid"),
        ("https://[::1/", "image_invalid"),
        ("https://images.example.org/\r\nHost: x", "image_invalid"),
        ("https://images.example.org/" + "a" * 9000, "image_invalid"),
        ("https://[::1]/", "image_forbidden"),
        ("http://127.0.0.1/", "image_forbidden"),
        ("file:///etc/passwd", "image_forbidden"),
        ("FILE:/etc/passwd", "image_forbidden"),
        ("ftp://images.example.org/a.png", "image_forbidden"),
        ("C:\\a.png", "image_forbidden"),
    ],
)
def test_refused_urls(url: str, code: str) -> None:
    assert code_of(url) == code
    assert code_of(url, BATCH) == code


def test_paths_are_for_batches_alone() -> None:
    assert BATCH.read("a/b.png", "").path == "/base/a/b.png"
    assert BATCH.read("/a/b.png", "").path == "/a/b.png"
    for path in ("a/b.png", "/a/b.png", "//images.example.org/a.png"):
        assert code_of(path) == "image_invalid"
    for path in ("", "a\0b"):
        assert code_of(path, BATCH) == "image_invalid"


@pytest.mark.parametrize("name", ["", "*", "*.", "a b", "http://a", "a/b", "a:80", "u@a", "*.*.a"])
def test_what_is_no_domain(name: str) -> None:
    with pytest.raises(ConfigError, match="--allow-domain"):
        AllowedDomains.of([name])


@given(st.text())
def test_any_text_is_an_image_or_a_refusal(text: str) -> None:
    for url in (text, f"https://{text}", f"https://images.example.org{text}", f"data:{text}"):
        try:
            ref = BATCH.read(url, "p")
        except RowError as error:
            assert len(error.message) < 500
            continue
        if ref.url is not None:
            assert DOMAINS.allows(host_of(ref.url))


@pytest.mark.parametrize(
    ("host", "kind"),
    [("127.0.0.1", "loopback"), ("10.0.0.7", "private"), ("169.254.169.254", "link-local")],
)
def test_an_address_that_is_not_public_cannot_be_allowed(host: str, kind: str) -> None:
    """Known before anything is fetched: `validate` would have found such rows in order."""
    with pytest.raises(ConfigError) as caught:
        AllowedDomains.of([host])
    assert str(caught.value).startswith(f"--allow-domain {host} is a {kind} address: ")
    for urls in (SERVER, ImageUrls()):  # and is not advised
        with pytest.raises(RowError) as refused:
            urls.read(f"http://{host}/a.jpg", "messages[0]")
        assert f"{host} is a {kind} address" in refused.value.message
    with pytest.raises(RowError) as v6:
        ImageUrls().read("http://[::1]/a.jpg", "messages[0]")
    assert "::1 is a loopback address" in v6.value.message


def test_a_public_address_can_be_allowed() -> None:
    assert ImageUrls(AllowedDomains.of(["9.9.9.9"])).read("http://9.9.9.9/a.jpg", "").url
