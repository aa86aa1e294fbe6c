"""Where relative paths of images start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ConfigError, ErrorCode, ManifestError
from vlmbatch.images.urls import AllowedDomains
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest

Make = Callable[..., Manifest]
ROWS = [{"prompt": "a", "image": image} for image in ("a/b c.jpg", "/abs.jpg", "../d.jpg")]


def opened(source: Path, base: str, *hosts: str, **options: Any) -> Manifest:
    config = ManifestConfig(str(source), image_base=base, **options)
    return open_manifest(config, SamplingParams(), domains=AllowedDomains.of(hosts))


def test_a_folder(manifest: Make, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = manifest(ROWS, image_base=str(tmp_path / "images"))
    assert rows.scan().image_base == tmp_path / "images"
    paths = [row.images[0].path for row in rows.rows()]
    images = f"{tmp_path}/images"
    assert paths == [f"{images}/a/b c.jpg", "/abs.jpg", f"{images}/../d.jpg"]


def test_a_url(manifest: Make, tmp_path: Path) -> None:
    manifest(
        [*ROWS, {"prompt": "a", "image": "x.pdf#1"}, {"prompt": "a", "image": "caf\u00e9?.jpg"}]
    )
    for base in ("https://h.example/x", "https://h.example/x/"):
        rows = opened(tmp_path / "m.jsonl", base, "h.example")
        assert rows.scan().image_base == "https://h.example/x/"
        first, absolute, outside, page, odd = rows.rows()
        assert first.images[0].url == "https://h.example/x/a/b%20c.jpg"
        assert absolute.images[0].path == "/abs.jpg"
        assert outside.error is not None and outside.error.code == ErrorCode.IMAGE_FORBIDDEN
        assert page.error is not None and "from files alone" in page.error.message
        assert odd.images[0].url == "https://h.example/x/caf%C3%A9%3F.jpg"


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("nowhere", "there is no such folder"),
        ("https://other.example/", "other.example is not allowed"),
        ("http://127.0.0.1/", "address"),
        ("odd://h.example/", "no scheme odd:// is known"),
        ("file:///photos/", "give the folder's path"),
        ("https://h.example/?q=", "cannot follow"),
        ("https://user@h.example/", "user name"),
    ],
)
def test_a_base_that_is_refused(manifest: Make, tmp_path: Path, base: str, says: str) -> None:
    manifest(ROWS)
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path / "m.jsonl", base, "h.example")


def test_only_paths_of_manifests_have_a_base(manifest: Make, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(ManifestError, match="is for the paths in a manifest"):
        opened(tmp_path / "photos", str(tmp_path), prompt="a")
    body = {"model": "m", "prompt": "Hello"}
    manifest([{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}])
    with pytest.raises(ManifestError, match="for manifests of columns"):
        opened(tmp_path / "m.jsonl", "https://h.example/", "h.example")
