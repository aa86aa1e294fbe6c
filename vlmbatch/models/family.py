"""What a model family gives, and where the families are. No torch: it is imported with a model.

A family is a package of modules that are imported when they are asked for:

    config       parse_config: config.json to a ``ModelConfig``
    processor    load: what turns rows into prompts and images into pixels, a ``Processor``
    model        Model and Vision: a ``VisionLanguageModel``, and its ``VisionModel`` alone
    costs        image_flops: what an image costs the tower at the least
    presets      CONFIGS, processor_config: published configurations, to run with random weights

Letters in shapes: T tokens of a step, M image tokens among them, E hidden size, V vocabulary,
C numbers in a feature of the tower's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageArguments, ImageResolution, PromptConfig
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.reduced import Reduced
from vlmbatch.types import ImageGrid, ImageInput, ImageSpan, PixelImage, ProcessedInputs, Row

if TYPE_CHECKING:
    from torch import Tensor

    from vlmbatch.attention.base import AttentionBackend, AttentionMetadata, LayerKVCache
    from vlmbatch.models.chat import ChatTemplate
    from vlmbatch.models.parallel import ParallelContext
    from vlmbatch.models.tokenizer import Tokenizer
    from vlmbatch.models.weights import CheckpointModel

FAMILIES = {  # packages, by the model_type in config.json
    "llava": "vlmbatch.models.llava",
    "llava_next": "vlmbatch.models.llava_next",
    "llava_onevision": "vlmbatch.models.llava_next",
    "qwen2_5_vl": "vlmbatch.models.qwen_vl",
    "qwen2_vl": "vlmbatch.models.qwen_vl",
    "qwen3_vl": "vlmbatch.models.qwen_vl",
}


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A row's prompt as the engine takes it; the fields are those of ``Request``.

    With ``inputs`` the row's images are in these.
    """

    token_ids: list[int] = field(repr=False)
    image_spans: tuple[ImageSpan, ...] = ()
    positions: NDArray[np.int64] | None = field(default=None, repr=False)
    next_position: int | None = None
    inputs: ProcessedInputs | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row's text as tokens, before room is made for its images.

    ``encoded``: the whole prompt, where it does not depend on what the images are.
    """

    token_ids: list[int] = field(repr=False)
    encoded: EncodedPrompt | None = None


class ImageProcessor(Protocol):
    """The half of a processor that looks at images. Pickled, it goes to the workers: no torch."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an image's pixels."""
        ...

    @property
    def largest_grid(self) -> ImageGrid:
        """No image has more tokens or bytes."""
        ...

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> ImageProcessor:
        """The processor for the images of a row that shows ``row_images`` of them.

        ``resolution``: the row's own, within the run's.

        Raises:
            RowError: ``resolution_invalid``, not one that the model or the run takes.
        """
        ...

    def grid(self, height: int, width: int) -> ImageGrid:
        """What becomes of an upright image of this size; equal to the grid that ``process`` gives.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of which an upright image of this size needs no more pixels.

        They are those that it is resized to, the larger where it is resized to several; its own
        where it is not.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...

    def process(self, image: RgbImage, reduced: Reduced | None = None) -> PixelImage:
        """Prepare one decoded RGB image, which may lie on a device.

        ``reduced``: where it was decoded to fewer pixels, though not fewer than ``needed``; the
        result has the shape and grid of the whole one's.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...


class Processor(Protocol):
    """Rows to what the engine takes. Thread-safe, no torch.

    ``images`` is None where images come as features. ``image_token`` is the text that stands for
    an image in prompts.
    """

    tokenizer: Tokenizer
    image_token: str
    max_model_len: int

    @property
    def images(self) -> ImageProcessor | None: ...

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises ConfigError where the model has none, or a bad one."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the token ids and the pixels of a row, by name; of files the digest."""
        ...

    @property
    def largest_grid(self) -> ImageGrid:
        """No image has more tokens or bytes; bytes of features, where images come as such."""
        ...

    def tokenize(self, row: Row) -> Tokens:
        """The row's text as tokens; all is checked here that can be before an image is touched.

        Raises:
            RowError: ``prompt_invalid``, ``image_token_mismatch`` or ``prompt_too_long``.
        """
        ...

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid]) -> EncodedPrompt:
        """Make room for the row's images, one grid each, and count positions.

        Raises:
            RowError: ``image_token_mismatch`` or ``prompt_too_long``.
        """
        ...

    def encode(self, tokens: Tokens, images: Sequence[ImageInput]) -> EncodedPrompt:
        """``place`` with the images themselves.

        Raises:
            RowError: as by ``place``, or the model cannot take these images.
        """
        ...

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """The grid of an image that is given as features of this shape.

        Raises:
            ValueError: no image's features have it; the message has both shapes.
        """
        ...

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """The shape that the features of an image are stored in; its last dimension is C."""
        ...

    def largest_image(self) -> ImageInput:
        """Zeros in the place of an image of ``largest_grid``, as the model is given images."""
        ...


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


class ImageFlops(NamedTuple):
    """Floating-point operations for one image."""

    tower: int
    projector: int


@dataclass(frozen=True, slots=True)
class Family:
    """The package of a family; see this module's head for what is in it."""

    package: str

    def parse_config(self, top: JsonFields, folder: Path) -> ModelConfig:
        """Normalise the fields of ``config.json`` in ``folder``.

        Raises:
            CheckpointError: a field is malformed or asks for something unsupported.
        """
        config: ModelConfig = self.module("config").parse_config(top, folder)
        return config

    def image_flops(self, config: ModelConfig, grid: ImageGrid) -> ImageFlops:
        """What the matrix products and the attention of one image's features take."""
        flops: ImageFlops = self.module("costs").image_flops(config, grid)
        return flops

    def processor_config(self, config: ModelConfig) -> dict[str, Any]:
        """A ``preprocessor_config.json`` that suits the model."""
        fields: dict[str, Any] = self.module("presets").processor_config(config)
        return fields

    @property
    def preset_configs(self) -> Mapping[str, Mapping[str, Any]]:
        """Published ``config.json``s by short names."""
        configs: Mapping[str, Mapping[str, Any]] = self.module("presets").CONFIGS
        return configs

    def build(
        self,
        config: ModelConfig,
        images: ImageProcessor | None,
        backend: AttentionBackend,
        parallel: ParallelContext,
        *,
        vision_only: bool,
    ) -> CheckpointModel:
        """The model on torch's current device, with empty weights; without ``images`` no tower."""
        module = self.module("model")
        make = module.Vision if vision_only else module.Model
        model: CheckpointModel = make(config, images, backend, parallel)
        return model

    def module(self, name: str) -> Any:
        """The module ``name`` of the package."""
        return import_module(f"{self.package}.{name}")


def family_of(config: ModelConfig) -> Family:
    """The family that parsed ``config``."""
    return Family(FAMILIES[config.model_type])


def load_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` (and ``generation_config.json``) of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, or asks for something unsupported; the
            message names the field and its value.
    """
    top = JsonFields.load(folder / "config.json")
    model_type = top.string("model_type", None)
    if model_type not in FAMILIES:
        if "auto_map" in top:
            raise top.error("auto_map", "none: a checkpoint's own Python code is never run")
        raise top.error("model_type", f"one of: {', '.join(FAMILIES)}")
    return Family(FAMILIES[model_type]).parse_config(top, folder)


def load_processor(
    folder: Path,
    config: ModelConfig,
    prompt: PromptConfig,
    images: ImageArguments,
    max_model_len: int | None = None,
    *,
    tokenizer_folder: Path | None = None,
    image_processor_folder: Path | None = None,
) -> Processor:
    """Read tokenizer, image processor and chat template of a checkpoint's folder.

    Tokenizer and image processor may be another's. The latter is not looked for where images
    come as features.

    Raises:
        CheckpointError: one of them is missing, unsupported or contradicts the model.
        ConfigError: an argument is invalid or contradicts the model.
    """
    processor: Processor = (
        family_of(config)
        .module("processor")
        .load(
            folder,
            config,
            prompt,
            images,
            max_model_len,
            tokenizer_folder=tokenizer_folder or folder,
            image_processor_folder=image_processor_folder or folder,
        )
    )
    return processor
