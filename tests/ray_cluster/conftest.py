"""A folder with the images of the samples, in which a run on a cluster reads and writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, samples: Path) -> Path:
    shutil.copytree(samples / "images", tmp_path / "images")
    return tmp_path
