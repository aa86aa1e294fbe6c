"""What a run needs before any weights are read. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmbatch.config import RunConfig
from vlmbatch.data.manifest import Manifest, open_manifest
from vlmbatch.errors import ConfigError
from vlmbatch.image_workers.loader import ImageLoader, InProcessLoader
from vlmbatch.image_workers.pool import ImageWorkers
from vlmbatch.models.config import ModelConfig, check_image_arguments, load_model_config
from vlmbatch.models.hub import resolve_model
from vlmbatch.models.processor import LlavaProcessor


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model's folder, its configuration and processor, and the manifest.

    ``streaming``: answers leave as rows arrive, and nothing is known of the manifest as a whole.
    """

    folder: Path
    model: ModelConfig
    processor: LlavaProcessor
    manifest: Manifest
    streaming: bool


def opening_stage(config: RunConfig) -> str:
    """What ``open_inputs`` spends its time on, for people."""
    if Path(config.model).expanduser().exists():
        return "reading the manifest"
    return f"fetching {config.model}"  # for minutes, where it is not in the cache


def open_inputs(config: RunConfig) -> Inputs:
    """Read the model's configuration and processor, and open the manifest.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    root = config.image_limits.root
    if root is not None and not root.is_dir():
        raise ConfigError(f"--image-root {root}: there is no such folder")
    folder = resolve_model(config.model, config.revision)
    model = load_model_config(folder)
    check_image_arguments(model, config.image_arguments)
    processor = LlavaProcessor.load(
        folder, model, config.prompt, config.image_arguments, config.engine.max_model_len
    )
    streaming = config.manifest.source == "-" and config.output == "-"
    manifest = open_manifest(config.manifest, config.sampling, streaming=streaming)
    return Inputs(folder, model, processor, manifest, streaming)


def open_images(config: RunConfig, inputs: Inputs, num_workers: int) -> ImageLoader:
    """Processes that decode images, or for none of them this one."""
    limits, processor = config.image_limits, inputs.processor.image_processor
    if num_workers == 0:
        return InProcessLoader(limits, processor)
    slots = 4 * num_workers  # twice the prepare threads: rows may have more images than one
    return ImageWorkers(limits, processor, num_workers, config.image_timeout_s, slots)
