"""What the engine needs of a model. No torch.

Letters in shapes: T tokens of a step, M image tokens among them, E hidden size, V vocabulary,
C numbers in a feature of the tower's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vlmbatch.types import ImageGrid

if TYPE_CHECKING:
    from torch import Tensor

    from vlmbatch.attention.base import AttentionMetadata, LayerKVCache


class Embedded(NamedTuple):
    """A step's embeddings. Row ``feature_rows[t]`` of each deep level is added to token t.

    ``hidden``: (T, E). ``deep``: (M, E) each, the first to be added after the first decoder layer,
    and so on. ``feature_rows``: (T,) int64, -1 for tokens of text; None where nothing is deep.
    """

    hidden: Tensor
    deep: tuple[Tensor, ...] = ()
    feature_rows: Tensor | None = None


class VisionModel(Protocol):
    """The part of a model that turns pixels into features that can be stored."""

    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        """Pixels (H_i, W_i, 3) uint8 of images of any size to features (tokens_i, C) each.

        ``grids``: of each image, as its ``ImageProcessor`` told it.
        """
        ...


class VisionLanguageModel(VisionModel, Protocol):
    """What the engine needs of a model."""

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        """Pixels (H_i, W_i, 3) uint8 to embeddings (tokens_i, (1 + deep_levels) * E) each."""
        ...

    def project_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What ``extract_features`` gives, in any float dtype, to what ``encode_images`` gives."""
        ...

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Embedded:
        """Token ids (T,) int64; token t is row ``feature_rows[t]`` of ``features`` where not -1.

        ``features``: (M, (1 + deep_levels) * E).
        """
        ...

    def forward(
        self,
        embedded: Embedded,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
    ) -> Tensor:
        """Hidden states (T, E) at positions (T,) or (3, T) int64.

        With ``metadata.sampled``: (n, E), those of its queries.
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(n, E) to (n, V), in any float dtype."""
        ...

    def kv_scales(self) -> list[Tensor]:
        """Of keys and values in e4m3: (2, K) float32 a layer, whatever the input."""
        ...
