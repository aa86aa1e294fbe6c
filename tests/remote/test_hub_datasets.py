"""Datasets on the Hugging Face Hub as manifests, from a stand-in on the loopback."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from huggingface_hub import constants

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.images.store_fetch import StoreFetcher
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest


def parquet(*prompts: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts, "image": ["images/a.png"] * len(prompts)}), file)
    return file.getvalue()


def opened(source: str) -> Manifest:
    return open_manifest(ManifestConfig(source), SamplingParams())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer().serving() as server:
        server.files["owner/photos"] = {
            "README.md": b"# Photos",
            "data/test-0.parquet": parquet("a"),
            "data/train-0.parquet": parquet("b", "c"),
            "images/a.png": b"an image",
        }
        # As HF_ENDPOINT would, where nothing was imported before.
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def test_a_dataset(hub: HubServer) -> None:
    """All its Parquet files, or those of a folder or a pattern; images lie where these start."""
    for source, found in (
        ("hf://datasets/owner/photos", ["a", "b", "c"]),
        ("hf://datasets/owner/photos@main/", ["a", "b", "c"]),
        ("hf://datasets/owner/photos@refs/convert/parquet", ["a", "b", "c"]),
        ("hf://datasets/owner/photos/data", ["a", "b", "c"]),
        ("hf://datasets/owner/photos/data/train-*.parquet", ["b", "c"]),
        ("hf://datasets/owner/photos/data/test-0.parquet", ["a"]),
    ):
        manifest = opened(source)
        assert manifest.scan().num_rows == len(found)
        assert [row.prompt for row in manifest.rows()] == found
    images = [row.images[0].url for row in opened("hf://datasets/owner/photos").rows()]
    assert {*images} == {"hf://datasets/owner/photos/images/a.png"}
    assert StoreFetcher().fetch(str(images[0])) == b"an image"
    with pytest.raises(RowError) as caught:
        StoreFetcher().fetch(f"{images[0]}.gone")
    assert caught.value.code == ErrorCode.IMAGE_MISSING


def test_a_dataset_that_changes(hub: HubServer) -> None:
    manifest = opened("hf://datasets/owner/photos/data/train-0.parquet")
    manifest.scan()
    hub.files["owner/photos"]["data/train-0.parquet"] = parquet("b", "d")
    with pytest.raises(ManifestError, match="changed while it was being read"):
        list(manifest.rows())


def test_a_dataset_that_cannot_be_read(hub: HubServer) -> None:
    hub.gated = {"owner/gated"}
    with pytest.raises(ManifestError, match=r"hf://datasets/owner/gated: access.*HF_TOKEN"):
        opened("hf://datasets/owner/gated")
    with pytest.raises(ManifestError, match="hf://datasets/owner/none: there is nothing there"):
        opened("hf://datasets/owner/none")
    with pytest.raises(ManifestError, match="namespace/name"):
        opened("hf://photos")
