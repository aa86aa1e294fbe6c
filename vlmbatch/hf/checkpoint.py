"""A checkpoint as transformers knows it, before its weights are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from vlmbatch.errors import CheckpointError, ConfigError
from vlmbatch.hf.library import config_failures, quiet_library, shown
from vlmbatch.models.config import WeightDType
from vlmbatch.models.json_fields import MAX_LAYERS, JsonFields
from vlmbatch.models.prompt_text import context_length as bounded_context

_LAYERS = re.compile("layers|depth|blocks|experts|stages")


@dataclass(frozen=True, slots=True)
class HfConfig:
    """What is asked of a model besides its answers.

    ``config``: transformers' own. ``context_length``: tokens of prompt and answer together.
    ``image_token_id``: stands for a part of an image in expanded prompts; None where none does.
    ``version``: transformers'.
    """

    model_type: str
    config: Any = field(repr=False)
    context_length: int
    dtype: WeightDType
    image_token_id: int | None
    version: str


def read_hf_config(folder: Path, max_model_len: int | None) -> HfConfig:
    """Read ``config.json`` by transformers' class for it. Imports torch.

    ``max_model_len``: the context length in place of the model's.

    Raises:
        CheckpointError: transformers has no class for the model that answers from images, or
            cannot read the file.
        ConfigError: ``max_model_len`` is out of range.
    """
    fields = JsonFields.load(folder / "config.json")
    model_type = fields.string("model_type", None)
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES,
    )

    quiet_library()
    version = str(transformers.__version__)
    if model_type not in CONFIG_MAPPING and "auto_map" in fields:
        raise fields.error("auto_map", "none: a checkpoint's own Python code is never run")
    if model_type is None or model_type not in CLASSES:
        raise fields.error(
            "model_type",
            f"one that transformers {version} answers from images, such as gemma3 or idefics3",
        )
    _check_layers(fields)
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        text = config.get_text_config(decoder=True)
    except config_failures() as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers {version} cannot read it: {shown(error)}"
        ) from error
    if config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{folder / 'config.json'}: {model_type} has an encoder for the prompt beside its "
            "decoder; only models that continue the prompt are run"
        )
    return HfConfig(
        model_type,
        config,
        context_length(folder, text, max_model_len),
        _dtype(config),
        _image_token_id(config),
        version,
    )


def _check_layers(fields: JsonFields) -> None:
    """transformers makes each layer before it looks at weights, whatever their number is called.

    Raises:
        CheckpointError: a number of layers that no published model comes near.
    """
    for name, value in fields.values.items():
        if isinstance(value, dict):
            _check_layers(JsonFields(value, f"{fields.where}: {name}"))
        elif isinstance(value, int) and value > MAX_LAYERS and _LAYERS.search(name):
            raise fields.error(name, f"an integer of at most {MAX_LAYERS}")


def context_length(folder: Path, text: Any, max_model_len: int | None) -> int:
    """Tokens of a prompt and its answer, by the ``text`` model's configuration or the option.

    Raises:
        ConfigError: neither names them, or the option more than the model has.
    """
    context = getattr(text, "max_position_embeddings", None)
    if not isinstance(context, int):
        if max_model_len is None:
            raise ConfigError(
                f"{folder / 'config.json'} names no context length: give --max-model-len"
            )
        return max_model_len
    return bounded_context(context, max_model_len)


def _dtype(config: Any) -> WeightDType:
    for section in (config, config.get_text_config(decoder=True)):
        name = str(getattr(section, "dtype", None)).removeprefix("torch.")
        if name in get_args(WeightDType):
            return cast(WeightDType, name)
    return "float32"


def _image_token_id(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return None
