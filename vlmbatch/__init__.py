"""Batch inference for vision-language models.

The names below are read from their modules when first used: ``import vlmbatch`` imports nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmbatch.api.images import ImageFeatureData, ImagePixelData
    from vlmbatch.api.llm import LLM
    from vlmbatch.api.outputs import CompletionOutput, RequestOutput
    from vlmbatch.config import SamplingParams
    from vlmbatch.errors import RowError, VlmbatchError

__version__ = "0.1.1"

__all__ = [
    "LLM",
    "CompletionOutput",
    "ImageFeatureData",
    "ImagePixelData",
    "RequestOutput",
    "RowError",
    "SamplingParams",
    "VlmbatchError",
]

_MODULES = {
    "CompletionOutput": "vlmbatch.api.outputs",
    "ImageFeatureData": "vlmbatch.api.images",
    "ImagePixelData": "vlmbatch.api.images",
    "LLM": "vlmbatch.api.llm",
    "RequestOutput": "vlmbatch.api.outputs",
    "RowError": "vlmbatch.errors",
    "SamplingParams": "vlmbatch.config",
    "VlmbatchError": "vlmbatch.errors",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
