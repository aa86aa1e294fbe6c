"""What a run needs before any weights are read. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vlmbatch.config import (
    EngineConfig,
    ImageArguments,
    JobConfig,
    ManifestConfig,
    SamplingParams,
    SessionConfig,
    StdoutDestination,
)
from vlmbatch.errors import ConfigError
from vlmbatch.hf.checkpoint import HfConfig, read_hf_config
from vlmbatch.hf.options import announce, check_options, choose_engine
from vlmbatch.images.buckets import AllowedBuckets
from vlmbatch.images.loading.device_process import MAX_IMAGES
from vlmbatch.images.loading.loader import FeatureLoader, ImageLoader, InProcessLoader
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.images.loading.shared_fetches import SharedFetches
from vlmbatch.images.loading.url_loader import UrlLoader
from vlmbatch.images.url_fetcher import UrlFetcher
from vlmbatch.images.urls import AllowedDomains
from vlmbatch.log import logger
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.manifest.open import open_manifest
from vlmbatch.models.config import ModelConfig, check_image_arguments, with_quantization
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.hub import resolve_model
from vlmbatch.models.processor import Processor
from vlmbatch.models.text_config import check_divides
from vlmbatch.replicas.choices import check_choices
from vlmbatch.session.gpu_decoder import check_gpu_decoder, gpu_decoder
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.stats import RunStats


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The model's folder, its configuration and processor.

    ``model``: an ``HfConfig`` where transformers answers.
    """

    folder: Path
    model: ModelConfig | HfConfig
    processor: Processor

    def quantization(self, engine: EngineConfig) -> str | None:
        """What is quantized, and how; None: nothing, or transformers knows."""
        if isinstance(self.model, HfConfig):
            return None
        weights = self.model.quantization
        parts = [] if weights is None else [weights.description]
        if engine.kv_cache_dtype == "fp8":
            parts.append("KV cache in FP8 (e4m3), a scale a layer and KV head")
        return "; ".join(parts) or None


@dataclass(frozen=True, slots=True)
class Inputs(ModelInputs):
    """The model and the manifest.

    ``streaming``: answers leave as rows arrive, and nothing is known of the manifest as a whole.
    """

    manifest: Manifest
    streaming: bool


def opening_stage(config: SessionConfig) -> str:
    """What ``open_inputs`` spends its time on, for people."""
    if Path(config.model).expanduser().exists():
        return "reading the manifest"
    return f"fetching {config.model}"  # for minutes, where it is not in the cache


def open_model(config: SessionConfig, stats: RunStats | None = None) -> ModelInputs:
    """Read the model's configuration and processor, of a Hub id after a download.

    Where transformers is to answer, that imports torch. ``stats``: see ``resolve_model``.

    Raises:
        UsageError: model or image arguments cannot be used, or ranks not divide the model.
    """
    root = config.image_limits.root
    if root is not None and not root.is_dir():
        raise ConfigError(f"--image-root {root}: there is no such folder")
    folder = resolve_model(config.model, config.revision, stats=stats)
    if choose_engine(config.engine.engine, folder) == "transformers":
        return _open_with_transformers(config, folder)
    model = with_quantization(load_model_config(folder), config.engine.quantize)
    check_divides(model.text, config.engine.tensor_parallel)
    check_image_arguments(model, config.image_arguments)
    _tell_of_unused_resolution(config.image_arguments)
    processor = load_processor(
        folder,
        model,
        config.prompt,
        config.image_arguments,
        config.engine.max_model_len,
        tokenizer_folder=_other_folder(config.tokenizer, stats=stats),
        image_processor_folder=_image_processor_folder(config, stats),
    )
    return ModelInputs(folder, model, processor)


def _open_with_transformers(config: SessionConfig, folder: Path) -> ModelInputs:
    from vlmbatch.hf.processor import HfProcessor

    model = read_hf_config(folder, config.engine.max_model_len)
    check_options(config)
    if config.engine.engine == "auto":
        announce(model.model_type)
    resolution = config.image_arguments.resolution
    processor = HfProcessor(folder, model, config.prompt, config.image_limits, resolution)
    return ModelInputs(folder, model, processor)


def _tell_of_unused_resolution(arguments: ImageArguments) -> None:
    """A configuration file may well bring one that suits the images."""
    given = [name for name, value in asdict(arguments.resolution).items() if value is not None]
    if given and arguments.image_input_type == "image_features":
        logger.info(
            "%s: not used, images come as features of the resolution that they were made at",
            ", ".join(given),
        )


def _image_processor_folder(config: SessionConfig, stats: RunStats | None) -> Path | None:
    images = config.image_arguments
    if images.image_input_type == "image_features":
        return None
    if images.image_processor is None and images.image_processor_revision is not None:
        return _other_folder(config.model, images.image_processor_revision, stats)
    return _other_folder(images.image_processor, images.image_processor_revision, stats)


def _other_folder(
    path_or_id: str | None, revision: str | None = None, stats: RunStats | None = None
) -> Path | None:
    """Where something else than weights lies; None for the model's own folder."""
    if path_or_id is None:
        return None
    return resolve_model(path_or_id, revision, weights=False, stats=stats)


def open_inputs(
    config: SessionConfig,
    manifest: ManifestConfig,
    sampling: SamplingParams | None = None,
    *,
    streaming: bool = False,
    stats: RunStats | None = None,
    needs_prompts: bool = True,
) -> Inputs:
    """Read the model's configuration and processor, and open the manifest.

    ``sampling``: of rows that bring none. ``streaming``: see ``Inputs``; ``stats``: see
    ``resolve_model``; ``needs_prompts``: see ``open_manifest``.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    if manifest.asks_in_chat and config.prompt.prompt_template is None:
        config = replace(config, prompt=replace(config.prompt, chat=True))
    opened = open_model(config, stats)
    if sampling is not None and sampling.choices:
        if isinstance(opened.model, HfConfig):
            raise ConfigError("--choices cannot be used where transformers answers")
        check_choices(sampling.choices, opened.processor.tokenizer)
    rows = open_manifest(
        manifest,
        sampling or SamplingParams(),
        streaming=streaming,
        domains=AllowedDomains.of(config.image_loading.allowed_domains),
        buckets=AllowedBuckets.of(config.image_loading.allowed_buckets),
        model=config.model,
        longest_side=config.image_arguments.resolution.longest_side,
        needs_prompts=needs_prompts,
    )
    return Inputs(opened.folder, opened.model, opened.processor, rows, streaming)


def open_job(config: JobConfig, stats: RunStats | None = None) -> Inputs:
    """``open_inputs`` of a whole run.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    to_stdout = isinstance(config.destination, StdoutDestination)
    streaming = config.manifest.source == "-" and to_stdout
    return open_inputs(
        config.session, config.manifest, config.sampling, streaming=streaming, stats=stats
    )


def open_images(
    config: SessionConfig,
    inputs: ModelInputs,
    num_workers: int,
    gpu: int | None = None,
    keep_s: float = 0.0,
) -> ImageLoader:
    """What decodes images, and fetches those behind URLs first.

    ``gpu``: which one decodes, where one is to; None: torch's own choice. ``keep_s``: see
    ``SharedFetches``.

    Raises:
        ConfigError: a GPU is to decode them, and something is missing for that.
    """
    decoders = _open_decoders(config, inputs, num_workers, gpu)
    return UrlLoader(decoders, open_fetches(config, keep_s))


def open_fetches(config: SessionConfig, keep_s: float) -> SharedFetches:
    """What fetches images for rows that may share them; ``keep_s``: see ``SharedFetches``."""
    max_bytes = HostMemory.divide(config.host_memory).encoded
    return SharedFetches(open_fetcher(config), max_bytes, keep_s)


def open_fetcher(config: SessionConfig) -> UrlFetcher:
    """What fetches images, of the URLs that rows may have."""
    domains = AllowedDomains.of(config.image_loading.allowed_domains)
    return UrlFetcher(domains, config.image_limits.max_bytes)


def _open_decoders(
    config: SessionConfig, inputs: ModelInputs, num_workers: int, gpu: int | None
) -> ImageLoader:
    """Processes that decode images, or for none of them this one, which also reads features."""
    limits, processor = config.image_limits, inputs.processor.images
    loading = config.image_loading
    if processor is None:
        return FeatureLoader(limits, inputs.processor)
    if num_workers == 0:
        return InProcessLoader(limits, processor, loading.decoder)
    slots = 4 * num_workers  # so that workers find another image at hand, also while threads wait
    open_device = None
    if loading.decoder == "gpu":
        check_gpu_decoder(config, inputs.processor)
        open_device = gpu_decoder() if gpu is None else gpu_decoder(f"cuda:{gpu}")
        slots += 2 * MAX_IMAGES  # a batch that is decoded, and the next
    recent_bytes = HostMemory.divide(config.host_memory).decoded
    return ImageWorkers(
        *(limits, processor, num_workers, loading.timeout_s, slots, recent_bytes),
        decoder=loading.decoder,
        open_device=open_device,
    )
