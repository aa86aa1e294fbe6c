from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmbatch.config import ManifestConfig, SamplingParams
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., Manifest]:
    """Write content as ``m.jsonl`` (or another name) and open it: bytes, or objects one a line."""

    def make(content: bytes | list[Any], *, name: str = "m.jsonl", **config: Any) -> Manifest:
        path = tmp_path / name
        if not isinstance(content, bytes):
            content = "".join(json.dumps(item) + "\n" for item in content).encode()
        path.write_bytes(content)
        return open_manifest(ManifestConfig(str(path), **config), SamplingParams())

    return make
