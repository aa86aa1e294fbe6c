"""The encoder cache: what it encodes, what it keeps, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlmbatch.engine.encoder_cache import EncoderCache
from vlmbatch.types import FeatureImage, ImageGrid, ImageInput, PixelImage


def image(value: int, tokens: int = 2) -> PixelImage:
    pixels = np.full((tokens, 2, 3), value, np.uint8)
    return PixelImage(pixels, b"image %d" % value, ImageGrid(tokens, 1, tokens, pixels.nbytes))


def feature_image(value: int, tokens: int = 2) -> FeatureImage:
    values = np.full((tokens, 1), value, np.float32)
    return as_features(values, b"features %d" % value)


def as_features(values: np.ndarray, content_hash: bytes) -> FeatureImage:
    return FeatureImage(values, content_hash, ImageGrid(len(values), 1, len(values), values.nbytes))


class Tower:
    """Embeds an image as its pixel value, for each of its rows; notes what passes are given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.dtypes: list[torch.dtype] = []  # of batches of features

    def encode(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        assert [grid.num_tokens for grid in grids] == [len(pixels) for pixels in images]
        self.batches.append([int(pixels[0, 0, 0]) for pixels in images])
        return [pixels[:, 0, :1].float() for pixels in images]

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        self.batches.append([int(each[0, 0]) for each in features])
        self.dtypes += {each.dtype for each in features}
        return [each.float() for each in features]


def make_cache(max_tokens: int = 16, batch_tokens: int = 8) -> tuple[EncoderCache, Tower]:
    tower = Tower()
    cpu = torch.device("cpu")
    return EncoderCache(tower.encode, tower.project, max_tokens, batch_tokens, cpu), tower


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
    cache, tower = make_cache(max_tokens=4)
    cache.get([image(1)])
    cache.get([image(2)])
    cache.get([image(1)])
    cache.get([image(3)])
    cache.get([image(1)])
    assert tower.batches == [[1], [2], [3]]
    cache.get([image(2)])
    assert tower.batches[3:] == [[2]]


def test_a_step_of_more_images_than_are_kept_gets_them_all() -> None:
    cache, _ = make_cache(max_tokens=4)
    assert len(cache.get([image(value) for value in range(5)])) == 5


def test_upcoming_images_fill_the_last_batch_up_and_no_more() -> None:
    cache, tower = make_cache(batch_tokens=8)
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
    cache, tower = make_cache(batch_tokens=4)
    images: list[ImageInput] = [
        feature_image(1),
        image(2),
        feature_image(3),
        feature_image(4),
        image(5),
    ]
    found = cache.get(images)
    assert tower.batches == [[2, 5], [1, 3], [4]]
    assert [found[given.content_hash][0, 0].item() for given in images] == [1, 2, 3, 4, 5]


def test_features_of_several_dtypes_keep_their_values_in_one_batch() -> None:
    bfloat16 = torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16)
    half = np.array([[0.1], [2**-14]], np.float16)
    cache, tower = make_cache()
    found = cache.get(
        [as_features(bfloat16.view(torch.uint16).numpy(), b"bf16"), as_features(half, b"half")]
    )
    assert found[b"bf16"].tolist() == [[1.5], [-2.0]]
    assert found[b"half"].tolist() == half.tolist()
    cache.get([as_features(bfloat16.view(torch.uint16).numpy(), b"alone")])
    assert tower.dtypes == [torch.float32, torch.bfloat16]


def test_images_of_unlike_sizes_share_batches_of_so_many_tokens() -> None:
    cache, tower = make_cache(max_tokens=100, batch_tokens=8)
    images = [image(1, 3), image(2, 5), image(3, 1), image(4, 20), image(5, 2)]
    found = cache.get(images, upcoming=[image(6, 5), image(7, 9), image(8, 1)])
    assert tower.batches == [[1, 2], [3], [4], [5, 6]], "the next one upcoming does not fit"
    for given in images:
        assert found[given.content_hash].tolist() == [[given.pixels[0, 0, 0]]] * len(given.pixels)


def test_large_images_push_more_out_than_small_ones() -> None:
    cache, tower = make_cache(max_tokens=10)
    for value, tokens in ((1, 4), (2, 4), (3, 6), (4, 4)):
        cache.get([image(value, tokens)])
    cache.get([image(3, 6), image(4, 4)])
    assert tower.batches == [[1], [2], [3], [4]]
    cache.get([image(2, 4)])
    assert tower.batches[4:] == [[2]]


def test_an_image_larger_than_the_cache_is_kept_for_the_next_chunk() -> None:
    cache, tower = make_cache(max_tokens=4)
    cache.get([image(1, 50)])
    cache.get([image(1, 50)])
    assert tower.batches == [[1]]
    cache.get([image(2, 2)])
    cache.get([image(1, 50)])
    assert tower.batches == [[1], [2], [1]]
