"""Images: the founding page's arguments, what an image may cost, and who decodes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from vlmbatch.config.option import Opt, check_bounds
from vlmbatch.errors import FieldError

ImageInputType = Literal["pixel_values", "image_features"]
ImageDecoder = Literal["exact", "scaled", "gpu"]

IMAGE_TIMEOUT_S = 60.0
MAX_WORKERS = 1024  # a process each
_MOST_PIXELS = 10**9
_MOST_SIDE = 10**6

_image = partial(Opt, panel="Images")


@dataclass(frozen=True, slots=True)
class ImageResolution:
    """How large a model whose images vary in size sees them; None: as the checkpoint says.

    Raises:
        ConfigError: a value out of range, or fewer pixels at the most than at the least.
    """

    max_pixels: Annotated[
        int | None,
        _image(
            "N",
            "Scale larger images down to about N pixels; a token of Qwen2.5-VL is 784 pixels, of "
            "Qwen3-VL 1024. A row's own column may ask for fewer.",
            minimum=1,
            maximum=_MOST_PIXELS,
        ),
    ] = None
    min_pixels: Annotated[
        int | None,
        _image(
            "N",
            "Scale smaller images up to about N pixels. A row's own column wins.",
            minimum=1,
            maximum=_MOST_PIXELS,
        ),
    ] = None
    longest_side: Annotated[
        int | None,
        _image(
            "N",
            "First scale down images whose longer side has more than N pixels.",
            minimum=1,
            maximum=_MOST_SIDE,
        ),
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_pixels is not None and (self.min_pixels or 0) > self.max_pixels:
            raise FieldError(
                "min_pixels",
                f"is {self.min_pixels}, above max_pixels, which is {self.max_pixels}",
                "max_pixels",
            )


@dataclass(frozen=True, slots=True)
class ImageArguments:
    """The founding page's image arguments. ``None`` is inferred; a value must match the model.

    Raises:
        ConfigError: images are to be files, and nothing is to make pixels of them.
    """

    image_input_type: Annotated[
        ImageInputType,
        _image(
            "NAME",
            "pixel_values for image files, or image_features for .safetensors or .npy files of "
            "the vision tower's output.",
        ),
    ] = "pixel_values"
    image_token_id: Annotated[
        int | None,
        _image("ID", "Token id of <image>. Like the next two, the model's when absent."),
    ] = None
    image_input_shape: Annotated[  # (1, channels, height, width)
        tuple[int, int, int, int] | None,
        _image("SHAPE", "Input of the vision tower, such as 1,3,336,336.", unit="shape"),
    ] = None
    image_feature_size: Annotated[
        int | None, _image("N", "<image> tokens that one image takes.")
    ] = None
    strict_image_tokens: Annotated[
        bool, _image("", "Refuse a single <image> that stands for all of an image's tokens.")
    ] = False
    image_processor: Annotated[
        str | None,
        _image(
            "NAME",
            "Folder or Hub id of an image processor to use in place of the model's.",
            filled=True,
        ),
    ] = None
    image_processor_revision: Annotated[
        str | None, _image("NAME", "Its branch, tag or commit on the Hub.", filled=True)
    ] = None
    disable_image_processor: Annotated[
        bool, _image("", "Use no image processor: only with image_features, which need none.")
    ] = False
    resolution: ImageResolution = field(default_factory=ImageResolution)

    def __post_init__(self) -> None:
        if not self.disable_image_processor:
            return
        if self.image_processor is not None:
            raise FieldError(
                "image_processor",
                f"{self.image_processor} and disable_image_processor contradict each other: "
                "choose one",
                "disable_image_processor",
            )
        if self.image_input_type == "pixel_values":
            raise FieldError(
                "disable_image_processor",
                "and image_input_type pixel_values contradict each other: the image processor "
                "makes pixels of images; only image_features need none",
                "image_input_type",
            )


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost before it is refused, and where it may lie."""

    root: Annotated[
        Path | None,
        _image("FOLDER", "Refuse image paths that lead out of this folder.", flag="--image-root"),
    ] = None
    max_pixels: Annotated[
        int,
        _image(
            "N", "Refuse images of more pixels, undecoded.", flag="--max-image-pixels", minimum=1
        ),
    ] = 100_000_000
    max_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True)
class ImageLoading:
    """Who decodes images, how, and where they may be fetched from.

    ``allowed_domains``: hosts of URLs. ``allowed_buckets``: URLs of buckets, or folders in them,
    of object stores. ``workers``: processes; 0: this one; None: one a spare core.

    Raises:
        ConfigError: a value out of range.
    """

    allowed_domains: Annotated[
        tuple[str, ...],
        _image(
            "HOST",
            "Fetch images from this host, such as images.example.org; *.example.org: from all "
            "below it. Repeatable.",
            flag="--allow-domain",
        ),
    ] = ()
    allowed_buckets: Annotated[
        tuple[str, ...],
        _image(
            "URL",
            "Read images from this bucket of an object store, or folder in one, such as "
            "s3://photos/2026. The bucket of the manifest and that of --image-base need none. "
            "Repeatable.",
            flag="--allow-bucket",
        ),
    ] = ()
    workers: Annotated[
        int | None,
        _image(
            "N",
            "Processes that decode images; absent: one a core, less one; 0: none, and no "
            "protection from images that crash or hang their decoder.",
            flag="--image-workers",
            minimum=0,
            maximum=MAX_WORKERS,
        ),
    ] = None
    decoder: Annotated[
        ImageDecoder,
        _image(
            "NAME",
            "exact: every pixel of the file; scaled: JPEGs that are at least twice as large as the "
            "model needs them, to a half, a quarter or an eighth, which is faster; gpu: plain "
            "JPEGs of a megapixel or more by nvJPEG on the GPU, all else as with exact.",
            flag="--image-decoder",
        ),
    ] = "exact"
    timeout_s: Annotated[
        float,
        _image(
            "SECONDS",
            "Give up an image that takes longer to decode.",
            flag="--image-timeout",
            argument="image_timeout_s",
        ),
    ] = IMAGE_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.workers is not None and not 0 <= self.workers <= MAX_WORKERS:
            raise FieldError(
                "image_workers", f"must be from 0 to {MAX_WORKERS}, got {self.workers}"
            )
        if self.decoder == "gpu" and self.workers == 0:
            raise FieldError(
                "image_decoder",
                "gpu and image_workers 0 contradict each other: workers decode what is no plain "
                "JPEG; 1 is enough",
                "image_workers",
            )
        if not 0 < self.timeout_s <= 86_400:
            raise FieldError(
                "image_timeout",
                f"must be above 0 and at most 86400 seconds, got {self.timeout_s:g}",
            )
