"""What the model makes of an image, without weights: by its header, or decoded whole."""

from __future__ import annotations

from vlmbatch.config import SessionConfig
from vlmbatch.images.decode import probe_image
from vlmbatch.images.feature_file import probe_features
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.url_header import UrlHeaders
from vlmbatch.session.open import ModelInputs, open_fetcher
from vlmbatch.types import ImageGrid, ImageRef

_KNOWN_HEADERS = 10_000  # of images behind URLs, which rows may share


class HeaderGrids:
    """By the header of an image's file alone; an ``ImageGrids``."""

    def __init__(self, config: SessionConfig, inputs: ModelInputs) -> None:
        self._limits = config.image_limits
        self._processor = inputs.processor
        self._headers = UrlHeaders(open_fetcher(config), config.image_limits, _KNOWN_HEADERS)

    def of(self, ref: ImageRef) -> ImageGrid | None:
        """None of features behind a URL, of which nothing is known."""
        if self._processor.images is None:
            if ref.url is not None:
                return None
            return probe_features(ref, self._limits, self._processor.feature_grid)
        images = self._processor.images.at(ref.resolution, ref.row_images)
        header = probe_image(ref, self._limits) if ref.url is None else self._headers.of(ref.url)
        return images.grid(header.height, header.width)

    def close(self) -> None:
        self._headers.close()


class DecodedGrids:
    """By decoding the image with ``loader``, which it closes; an ``ImageGrids``."""

    def __init__(self, loader: ImageLoader) -> None:
        self._loader = loader

    def of(self, ref: ImageRef) -> ImageGrid | None:
        return self._loader.submit(ref).result().grid

    def close(self) -> None:
        self._loader.close()
