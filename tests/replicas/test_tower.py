"""The tower as a replica: batches that are computed once, given back, given up or not written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vlmbatch.engine.image_upload import ImageUpload
from vlmbatch.errors import OutputError
from vlmbatch.output.feature_folder import FeatureFolder
from vlmbatch.replicas.tower import MAX_WAITING, TowerReplica, batch_request
from vlmbatch.types import ImageGrid, PixelImage, Request


class Sums:
    """A tower of one feature an image: the sum of its pixels."""

    def extract_features(
        self, images: Sequence[torch.Tensor], grids: Sequence[ImageGrid]
    ) -> list[torch.Tensor]:
        return [image.sum(dtype=torch.float32).reshape(1, 1) for image in images]


def batch(index: int) -> Request:
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in (index, index + 1)]
    grid = ImageGrid(1, 1, 1, 12)
    return batch_request(
        index, {f"{each[0, 0, 0]:02x}": PixelImage(each, b"", grid) for each in pixels}
    )


@pytest.fixture
def begun() -> list[list[int]]:
    return []


@pytest.fixture
def tower(tmp_path: Path, begun: list[list[int]]) -> Any:
    processor: Any = SimpleNamespace(feature_shape=lambda grid: (1, 1))
    with FeatureFolder(tmp_path / "f") as folder:
        upload = ImageUpload(torch.device("cpu"))
        tower = TowerReplica(Sums(), upload, processor, folder, "model", begun.append)
        yield tower
        tower.close()


def ended(tower: TowerReplica) -> list[int]:
    found = []
    while tower.num_unfinished:
        found += [event.index for event in tower.poll()]
    return found


def test_batches_in_order_and_what_is_told_of_them(
    tower: TowerReplica, tmp_path: Path, begun: list[list[int]]
) -> None:
    for index in (0, 10, 20):
        assert tower.wants_requests == (tower.status.waiting < MAX_WAITING)
        tower.submit(batch(index))
    assert ended(tower) == [0, 10, 20] and begun == [[0], [10], [20]]
    assert (tower.status.answered, tower.status.prompt_tokens) == (6, 6)
    stored = {
        path.stem: load_file(path)["features"].item() for path in tmp_path.rglob("*.safetensors")
    }
    assert stored == {f"{value:02x}": 12.0 * value for value in (0, 1, 10, 11, 20, 21)}


def test_what_is_given_back_or_given_up_is_not_computed(
    tower: TowerReplica, begun: list[list[int]]
) -> None:
    for index in range(5):
        tower.submit(batch(10 * index))
    assert tower.take_back(2) == [40, 30]
    tower.cancel(10)
    assert ended(tower) == [0, 20]
    tower.submit(batch(50))
    assert tower.take_back(9) == [50] and tower.take_back(9) == []
    tower.submit(batch(60))
    tower.drop_waiting()
    assert ended(tower) == [] and begun == [[0], [20]]


def test_a_file_that_cannot_be_written_ends_it(tower: TowerReplica, tmp_path: Path) -> None:
    (tmp_path / "f/features/07").write_text("in the way")
    tower.submit(batch(6))
    with pytest.raises(OutputError, match=r"cannot be written: (Not a dir|File ex)"):
        ended(tower)
