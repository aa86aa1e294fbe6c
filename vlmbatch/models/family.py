"""What a model family gives, and where the families are. No torch: it is imported with a model.

A family is a package of modules that are imported when they are asked for:

    config       parse_config: config.json to a ``ModelConfig``
    processor    load: what turns rows into prompts and images into pixels, a ``Processor``
    model        Model and Vision: a ``VisionLanguageModel``, and its ``VisionModel`` alone
    costs        image_flops: what an image costs the tower at the least
    presets      CONFIGS, processor_config: published configurations, to run with random weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.processor import ImageProcessor, Processor
from vlmbatch.types import ImageGrid

if TYPE_CHECKING:
    from vlmbatch.attention.base import AttentionBackend
    from vlmbatch.models.parallel import ParallelContext
    from vlmbatch.models.weights import CheckpointModel

FAMILIES = {  # packages, by the model_type in config.json
    "llava": "vlmbatch.models.llava",
    "llava_next": "vlmbatch.models.llava_next",
    "llava_onevision": "vlmbatch.models.llava_next",
    "qwen2_5_vl": "vlmbatch.models.qwen_vl",
    "qwen2_vl": "vlmbatch.models.qwen_vl",
    "qwen3_vl": "vlmbatch.models.qwen_vl",
}


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
