"""Images by the names of their features, and decoded where these are still to be computed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from vlmbatch.config import SessionConfig
from vlmbatch.errors import RowError
from vlmbatch.images.file import read_image_bytes
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.images.loading.shared_fetches import KEEP_SECONDS
from vlmbatch.jobs.fingerprint import checkpoint_digest
from vlmbatch.output.feature_folder import FeatureFolder
from vlmbatch.session.open import Inputs, open_fetches
from vlmbatch.types import ImageRef, PixelImage, Row


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image by the name of its features, with pixels where these are still to be computed."""

    name: str
    pixels: PixelImage | None


Outcome = NamedImage | RowError


class ImageNamer:
    """Names images by what decides their features, and decodes those that are not stored yet."""

    def __init__(
        self,
        config: SessionConfig,
        inputs: Inputs,
        folder: FeatureFolder,
        images: ImageLoader,
        dtype: str,
    ) -> None:
        assert inputs.processor.images is not None
        self._limits = config.image_limits
        self._folder = folder
        self._images = images
        self._fetches = open_fetches(config, KEEP_SECONDS)
        self._processor = inputs.processor.images
        self._checkpoint = checkpoint_digest(inputs.folder)
        decoder = config.image_loading.decoder
        # Nothing where it is exact, as in versions that knew no other.
        self._loading = (dtype,) if decoder == "exact" else (dtype, decoder)

    def name(self, row: Row) -> list[Outcome]:
        """What has become of each of the row's images, in order. Thread-safe."""
        return [self._named(ref) for ref in row.images]

    def close(self) -> None:
        """Give up what is being fetched: ``name`` raises CancelledError."""
        self._fetches.close()

    def _named(self, ref: ImageRef) -> Outcome:
        try:
            context = self._context(ref)
            data = self._bytes(ref)
            digest = hashlib.blake2b(data, digest_size=20, key=context)
            name = digest.hexdigest()
            if self._folder.has(name):
                return NamedImage(name, None)
            embedded = replace(ref, path=ref.url or ref.path, data=data, url=None)
            image = self._images.submit(embedded).result()
        except RowError as error:
            return error
        assert isinstance(image, PixelImage)
        return NamedImage(name, image)

    def _context(self, ref: ImageRef) -> bytes:
        """Digest of what decides an image's features beside its file."""
        fingerprint = self._processor.at(ref.resolution, ref.row_images).fingerprint
        page = () if ref.page is None else (ref.page,)
        context = repr((self._checkpoint, fingerprint, *self._loading, *page))
        return hashlib.blake2b(context.encode()).digest()

    def _bytes(self, ref: ImageRef) -> bytes:
        if ref.url is None:
            return read_image_bytes(ref, self._limits)
        return self._fetches.fetch(ref.url)
