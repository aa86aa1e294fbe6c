"""Frozen settings: what to sample, how the engine runs, what a run reads and writes."""

from vlmbatch.config.engine import (
    AttentionBackendName,
    Device,
    DType,
    EngineConfig,
    EngineName,
    KVCacheDType,
    Quantize,
)
from vlmbatch.config.images import (
    IMAGE_TIMEOUT_S,
    ImageArguments,
    ImageDecoder,
    ImageInputType,
    ImageLimits,
    ImageLoading,
    ImageResolution,
)
from vlmbatch.config.job import (
    Destination,
    DurableDestination,
    FileDestination,
    FolderDestination,
    JobConfig,
    OutputOptions,
    PartDestination,
    RemoteDestination,
    RunPolicy,
    StdoutDestination,
)
from vlmbatch.config.manifest import FEATURE_MANIFEST, ManifestConfig, ManifestFormat
from vlmbatch.config.part import Part
from vlmbatch.config.sampling import MAX_LOGPROBS, SamplingParams
from vlmbatch.config.session import MIN_HOST_MEMORY, PromptConfig, SessionConfig

__all__ = [
    "FEATURE_MANIFEST",
    "IMAGE_TIMEOUT_S",
    "MAX_LOGPROBS",
    "MIN_HOST_MEMORY",
    "AttentionBackendName",
    "DType",
    "Destination",
    "Device",
    "DurableDestination",
    "EngineConfig",
    "EngineName",
    "FileDestination",
    "FolderDestination",
    "ImageArguments",
    "ImageDecoder",
    "ImageInputType",
    "ImageLimits",
    "ImageLoading",
    "ImageResolution",
    "JobConfig",
    "KVCacheDType",
    "ManifestConfig",
    "ManifestFormat",
    "OutputOptions",
    "Part",
    "PartDestination",
    "PromptConfig",
    "Quantize",
    "RemoteDestination",
    "RunPolicy",
    "SamplingParams",
    "SessionConfig",
    "StdoutDestination",
]
