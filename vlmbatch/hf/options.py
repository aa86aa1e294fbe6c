"""Which engine answers, and the options that have no meaning for transformers. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlmbatch.config import EngineName, SessionConfig
from vlmbatch.config.option import OptField, opt_fields
from vlmbatch.errors import ConfigError
from vlmbatch.log import logger
from vlmbatch.models.family import FAMILIES
from vlmbatch.models.json_fields import JsonFields

_REASONS = {
    "image_input_type": "images go through the checkpoint's own processor and tower: only "
    "pixel_values",
    "disable_image_processor": "images go through the checkpoint's own processor",
    "image_token_id": "the checkpoint's processor has its own",
    "image_input_shape": "the checkpoint's processor has its own",
    "image_feature_size": "the checkpoint's processor has its own",
    "strict_image_tokens": "a prompt has one placeholder an image, which the checkpoint's "
    "processor expands",
    "image_processor": "it is a part of the checkpoint's processor",
    "image_processor_revision": "it is a part of the checkpoint's processor",
    "tokenizer": "it is a part of the checkpoint's processor",
    "quantize": "transformers loads weights as they are",
    "tensor_parallel": "transformers runs on one device",
    "attention_backend": "transformers chooses its own",
    "max_batched_tokens": "a batch is bounded by --max-num-seqs",
    "kv_cache_tokens": "transformers makes a cache for each batch",
    "kv_cache_dtype": "transformers makes a cache for each batch",
    "enable_prefix_caching": "there is no prefix cache",
}


def choose_engine(name: EngineName, folder: Path) -> Literal["vlmbatch", "transformers"]:
    """What ``auto`` stands for: ours where there is a family for the checkpoint's model_type.

    Raises:
        CheckpointError: ``config.json`` cannot be read.
    """
    if name != "auto":
        return name
    model_type = JsonFields.load(folder / "config.json").string("model_type", None)
    return "vlmbatch" if model_type is None or model_type in FAMILIES else "transformers"


def announce(model_type: str) -> None:
    """Say in a line that ``auto`` has found no family of ours."""
    logger.info(
        "no family of our own for model_type %s: transformers answers, which is slower", model_type
    )


def check_options(config: SessionConfig) -> None:
    """Refuse the options of a session that have no meaning where transformers answers.

    Raises:
        ConfigError: names the option, its value and why.
    """
    why = (
        "--engine transformers"
        if config.engine.engine == "transformers"
        else "the model has no family of our own, so that transformers answers"
    )
    for item in opt_fields(SessionConfig):
        reason = _REASONS.get(item.path[-1])
        value = _value(config, item)
        if reason is not None and value != item.default:
            shown = "" if isinstance(value, bool) else f" {value}"
            raise ConfigError(f"{item.flag}{shown} cannot be used here: {why}, and {reason}")
    if config.engine.random_weights:
        raise ConfigError(f"random weights cannot be used here: {why}")


def _value(config: Any, item: OptField) -> Any:
    for name in item.path:
        config = getattr(config, name)
    return config
