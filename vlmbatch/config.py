"""Frozen settings: what to sample, how the engine runs, what a run reads and writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from vlmbatch import typed
from vlmbatch.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "cpu"]
AttentionBackendName = Literal["auto", "flash-attn", "triton", "torch"]
ImageInputType = Literal["pixel_values", "image_features"]
ManifestFormat = Literal["auto", "manifest", "openai"]

IMAGE_TIMEOUT_S = 60.0
FEATURE_MANIFEST = "manifest.jsonl"  # of a folder of features
MIN_HOST_MEMORY = 2**24  # bytes


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one row are chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps the whole vocabulary. The stream of random
    numbers depends on ``seed`` and the token's position alone, so a row's text does not depend on
    what it is batched with. Text is cut before the first of the ``stop`` strings. ``None`` stands
    for the default, but in ``max_tokens`` for as many as the context has room for, as in vLLM.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: Sequence[str] = ()  # one string or several; kept as a tuple
    stop_token_ids: Sequence[int] = ()  # kept as a tuple
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, read in _SAMPLING_READERS.items():
            given: object = getattr(self, name)
            value = _STANDS_FOR_NONE[name] if given is None else read(name, given)
            object.__setattr__(self, name, value)
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(
                f"top_k must be from 0 (which keeps all tokens) to 2**31 - 1, got {self.top_k}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if any(not text for text in self.stop):
            raise ConfigError("a stop string must not be empty")


def _stop_strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    items = typed.several(name, value, "a string or a list of strings")
    return tuple(typed.text(f"{name}[{index}]", item) for index, item in enumerate(items))


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    items = typed.several(name, value, "a list of integers")
    return tuple(typed.integer(f"{name}[{index}]", item) for index, item in enumerate(items))


_SAMPLING_READERS: dict[str, Callable[[str, object], object]] = {
    "max_tokens": typed.integer,
    "temperature": typed.number,
    "top_p": typed.number,
    "top_k": typed.integer,
    "seed": typed.integer,
    "stop": _stop_strings,
    "stop_token_ids": _token_ids,
    "ignore_eos": typed.boolean,
}
_STANDS_FOR_NONE: dict[str, object] = {
    **{field.name: field.default for field in fields(SamplingParams)},
    "max_tokens": 2**31 - 1,
}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the engine. ``None`` and "auto" are resolved from the device before use."""

    dtype: DType = "auto"
    device: Device = "auto"
    attention_backend: AttentionBackendName = "auto"
    max_num_seqs: int | None = None  # sequences in one step; None: what suits the device
    max_batched_tokens: int | None = None  # tokens in one step; None: what suits the device
    kv_cache_tokens: int | None = None  # size of the paged KV pool; None: what memory allows
    max_model_len: int | None = None  # context length; None: the model's own
    enable_prefix_caching: bool = True
    cuda_graphs: bool = True  # decode steps on a GPU are captured and replayed
    overlap_prefill: bool = True  # prefill beside decode where a GPU can be divided
    cpu_threads: int | None = None  # of an engine on the CPU; None: torch's own choice
    random_weights: bool = False  # to measure speed: no weights are read

    def __post_init__(self) -> None:
        if self.max_num_seqs is not None and self.max_num_seqs < 1:
            raise ConfigError(f"max_num_seqs must be at least 1, got {self.max_num_seqs}")
        if self.max_batched_tokens is not None and self.max_batched_tokens < 1:
            raise ConfigError(
                f"max_batched_tokens must be at least 1, got {self.max_batched_tokens}"
            )


@dataclass(frozen=True, slots=True)
class ImageArguments:
    """The founding page's image arguments. ``None`` is inferred; a value must match the model.

    Raises:
        ConfigError: images are to be files, and nothing is to make pixels of them.
    """

    image_input_type: ImageInputType = "pixel_values"
    image_token_id: int | None = None
    image_input_shape: tuple[int, int, int, int] | None = None  # (1, channels, height, width)
    image_feature_size: int | None = None
    strict_image_tokens: bool = False
    image_processor: str | None = None  # folder or Hub id; None: the model's own
    image_processor_revision: str | None = None
    disable_image_processor: bool = False

    def __post_init__(self) -> None:
        if not self.disable_image_processor:
            return
        if self.image_processor is not None:
            raise ConfigError(
                f"image_processor {self.image_processor} and disable_image_processor contradict "
                "each other: choose one"
            )
        if self.image_input_type == "pixel_values":
            raise ConfigError(
                "disable_image_processor and image_input_type pixel_values contradict each other: "
                "the image processor makes pixels of images; only image_features need none"
            )


def parse_image_shape(text: str) -> tuple[int, int, int, int]:
    """``image_input_shape`` as people write it: "1,3,336,336".

    Raises:
        ConfigError: not four numbers above 0, the first of them 1.
    """
    try:
        batch, channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        batch = channels = height = width = 0
    if batch != 1 or min(channels, height, width) < 1:
        raise ConfigError(
            f'image_input_shape is "1,channels,height,width", such as "1,3,336,336"; got "{text}"'
        )
    return batch, channels, height, width


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost before it is refused, and where it may lie."""

    max_pixels: int = 100_000_000
    max_bytes: int = 256 * 2**20
    root: Path | None = None  # when set, no image may resolve to a path outside it


@dataclass(frozen=True, slots=True)
class ManifestConfig:
    """Where the rows come from and what their columns are called.

    Raises:
        ConfigError: a prefix that is no text.
    """

    source: str  # a path, a folder, or "-" for JSONL on standard input
    prompt_column: str = "prompt"
    image_column: str = "image"
    id_column: str = "id"
    limit: int | None = None
    max_line_bytes: int = 16 * 2**20
    format: ManifestFormat = "auto"  # openai: requests as in OpenAI's Batch API; auto: as it looks
    column_prefix: str | None = ""  # of the output's own columns; None: the output has none
    keep_inputs: bool = False  # prompts and images are written beside the answers

    def __post_init__(self) -> None:
        try:
            (self.column_prefix or "").encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"column_prefix {self.column_prefix!r} is not UTF-8") from error


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How a row's text becomes the model's prompt."""

    chat: bool = False
    chat_template: Path | None = None
    prompt_template: str | None = None  # "{prompt}" stands for the row's prompt
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One whole job.

    ``output`` is a ``.parquet`` file, for OpenAI's requests also a ``.jsonl`` file, a folder when
    ``shard_rows`` is set, or "-" for JSONL on standard output.
    """

    model: str
    manifest: ManifestConfig
    output: str
    revision: str | None = None
    tokenizer: str | None = None  # folder or Hub id; None: the model's own
    sampling: SamplingParams = SamplingParams()
    engine: EngineConfig = EngineConfig()
    image_arguments: ImageArguments = ImageArguments()
    image_limits: ImageLimits = ImageLimits()
    allowed_domains: tuple[str, ...] = ()  # hosts that images of OpenAI's requests may come from
    prompt: PromptConfig = PromptConfig()
    overwrite: bool = False  # start anew whatever is there
    retry_failed: bool = False  # answer error rows of an earlier run again
    incremental: bool = False  # keep answers of unchanged rows when the manifest has changed
    shard_rows: int | None = None  # the output is a folder of files with so many rows each
    grace_s: float = 20.0  # for rows under way when the run is stopped
    deadline_s: float | None = None  # the run stops itself after so long
    max_error_rate: float | None = None  # the run stops itself above this share of failed rows
    image_workers: int | None = None  # processes that decode; 0: this one; None: one a spare core
    image_timeout_s: float = IMAGE_TIMEOUT_S  # for one image in a worker process
    queue_rows: int = 128  # prepared rows that may wait for the engine
    host_memory: int | None = None  # bytes of what waits; None: what suits the machine

    def __post_init__(self) -> None:
        if self.host_memory is not None and self.host_memory < MIN_HOST_MEMORY:
            raise ConfigError(
                f"host_memory must be at least {MIN_HOST_MEMORY} bytes (16MiB), "
                f"got {self.host_memory}"
            )
        if self.image_workers is not None and self.image_workers < 0:
            raise ConfigError(f"image_workers must be at least 0, got {self.image_workers}")
        if not 0 < self.image_timeout_s <= 86_400:
            raise ConfigError(
                "the image timeout must be above 0 and at most 86400 seconds, "
                f"got {self.image_timeout_s:g}"
            )
