"""The encoder cache: what it encodes, what it keeps, and for how long."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlmbatch.engine.encoder_cache import EncoderCache
from vlmbatch.types import FeatureImage, PixelImage


def image(value: int) -> PixelImage:
    return PixelImage(np.full((2, 2, 3), value, np.uint8), b"image %d" % value)


def feature_image(value: int, dtype: type[np.generic] = np.float32) -> FeatureImage:
    return FeatureImage(np.full((2, 1), value, dtype), b"features %d" % value)


class Tower:
    """Features of an image are its pixel value, twice; notes what each pass was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.dtypes: list[torch.dtype] = []  # of batches of features

    def encode(self, pixels: Tensor) -> Tensor:
        self.batches.append(pixels[:, 0, 0, 0].tolist())
        return pixels[:, 0, :2, :1].float()

    def project(self, features: Tensor) -> Tensor:
        self.batches.append(features[:, 0, 0].tolist())
        self.dtypes.append(features.dtype)
        return features.float()


def make_cache(max_images: int = 8, batch_images: int = 4) -> tuple[EncoderCache, Tower]:
    tower = Tower()
    cpu = torch.device("cpu")
    return EncoderCache(tower.encode, tower.project, max_images, batch_images, cpu), tower


def test_an_image_kept_is_not_encoded_again() -> None:
    cache, tower = make_cache()
    first = cache.get([image(1), image(2), image(1)])
    again = cache.get([image(2), image(3)])
    assert tower.batches == [[1, 2], [3]]
    assert cache.num_encoded == 3
    assert {key: features[0, 0].item() for key, features in (first | again).items()} == {
        image(value).content_hash: value for value in (1, 2, 3)
    }


def test_the_image_used_longest_ago_makes_room() -> None:
    cache, tower = make_cache(max_images=2)
    cache.get([image(1)])
    cache.get([image(2)])
    cache.get([image(1)])
    cache.get([image(3)])
    cache.get([image(1)])
    assert tower.batches == [[1], [2], [3]]
    cache.get([image(2)])
    assert tower.batches[3:] == [[2]]


def test_a_step_of_more_images_than_are_kept_gets_them_all() -> None:
    cache, _ = make_cache(max_images=2)
    assert len(cache.get([image(value) for value in range(5)])) == 5


def test_upcoming_images_fill_the_last_batch_up_and_no_more() -> None:
    cache, tower = make_cache(batch_images=4)
    cache.get([image(9)])
    upcoming = [image(value) for value in (9, 2, 3, 3, 4, 5, 6)]
    cache.get([image(1), image(2)], upcoming)
    assert tower.batches[1:] == [[1, 2, 3, 4]]
    cache.get([image(3), image(4)], [image(7)])
    assert len(tower.batches) == 2, "with nothing to encode, nothing is encoded ahead"


def test_what_is_kept_does_not_hold_its_whole_batch_in_memory() -> None:
    cache, _ = make_cache()
    for features in cache.get([image(1), image(2), image(3)]).values():
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()


def test_images_given_as_features_are_projected_in_batches_of_their_own() -> None:
    cache, tower = make_cache(batch_images=2)
    images = [feature_image(1), image(2), feature_image(3), feature_image(4), image(5)]
    found = cache.get(images)
    assert tower.batches == [[2, 5], [1, 3], [4]]
    assert [found[given.content_hash][0, 0].item() for given in images] == [1, 2, 3, 4, 5]


def test_features_of_several_dtypes_keep_their_values_in_one_batch() -> None:
    bfloat16 = torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16)
    half = np.array([[0.1], [2**-14]], np.float16)
    cache, tower = make_cache()
    found = cache.get(
        [FeatureImage(bfloat16.view(torch.uint16).numpy(), b"bf16"), FeatureImage(half, b"half")]
    )
    assert found[b"bf16"].tolist() == [[1.5], [-2.0]]
    assert found[b"half"].tolist() == half.tolist()
    cache.get([FeatureImage(bfloat16.view(torch.uint16).numpy(), b"alone")])
    assert tower.dtypes == [torch.float32, torch.bfloat16]
