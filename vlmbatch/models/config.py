"""A checkpoint's ``config.json``, normalised once into frozen dataclasses. No torch.

Published files leave most fields out: a missing one has the default of the transformers
configuration class of its ``model_type``. Here is what all families have in common.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from vlmbatch.config import ImageArguments, Quantize
from vlmbatch.errors import ConfigError, FieldError
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.quantization import Fp8Config
from vlmbatch.models.text_config import TEXT_DEFAULTS, RopeConfig, TextConfig

__all__ = [
    "ModelConfig",
    "RopeConfig",
    "TextConfig",
    "WeightDType",
    "check_image_arguments",
    "parse_dtype",
    "parse_eos_token_ids",
    "parse_image_token_id",
    "with_quantization",
]

WeightDType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the engine and the stages around it know of any vision-language model.

    ``deep_levels``: how many embeddings an image token has beside the first, each to be added
    after one more of the decoder's first layers (0: none). ``quantization``: of the decoder's
    linear layers.
    """

    model_type: str
    text: TextConfig
    image_token_id: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: WeightDType
    deep_levels: int = 0
    quantization: Fp8Config | None = None

    @property
    def image_embedding_size(self) -> int:
        """Numbers that the decoder is given for one image token, all levels together."""
        return (1 + self.deep_levels) * self.text.hidden_size

    @property
    def image_feature_size(self) -> int | None:
        """Tokens that an image takes, where all take as many."""
        return None

    @property
    def image_input_shape(self) -> tuple[int, int, int, int] | None:
        """(1, channels, height, width) of the tower's input, where all images have one."""
        return None


def check_image_arguments(config: ModelConfig, arguments: ImageArguments) -> None:
    """Refuse image arguments that contradict the model.

    Raises:
        ConfigError: with the given value and the model's.
    """
    for name in ("image_token_id", "image_input_shape", "image_feature_size"):
        given, actual = getattr(arguments, name), getattr(config, name)
        if given is None or given == actual:
            continue
        if actual is None:
            raise FieldError(
                name,
                f"is given as {given}, but this model's varies with the size of the image: leave "
                "it out; --max-pixels, --min-pixels and --longest-side say how large images may be",
            )
        raise FieldError(
            name,
            f"is given as {given}, but the model's is {actual}; leave it out to take the model's",
        )
    if config.image_feature_size is None:
        return
    for name, given in asdict(arguments.resolution).items():
        if given is not None:
            raise FieldError(
                name,
                f"is given as {given}, but the model's images always take "
                f"{config.image_feature_size} tokens: leave it out",
            )


def with_quantization(config: ModelConfig, quantize: Quantize | None) -> ModelConfig:
    """The configuration of a model that is quantized while it loads, where that is asked for.

    Raises:
        ConfigError: the checkpoint's weights are quantized already.
    """
    if quantize is None:
        return config
    if config.quantization is not None:
        raise ConfigError(
            f"--quantize {quantize}: the checkpoint has {config.quantization.description} already; "
            "leave it out"
        )
    return replace(config, quantization=Fp8Config())


def parse_image_token_id(top: JsonFields, default: int, vocab_size: int) -> int:
    """The id that stands for an image in prompts, by either of its names.

    Raises:
        CheckpointError: not an id of the vocabulary.
    """
    name = "image_token_index" if "image_token_index" in top else "image_token_id"
    image_token_id = top.integer(name, default, minimum=0)
    if image_token_id >= vocab_size:
        raise top.error(name, f"an id below the vocabulary size {vocab_size}")
    return image_token_id


def parse_eos_token_ids(
    folder: Path, top: JsonFields, text: JsonFields, model_type: str
) -> tuple[int, ...]:
    """Ids that end an answer, from ``generation_config.json`` first; ``model_type``: the text's."""
    name = "eos_token_id"
    path = folder / "generation_config.json"
    generation = [JsonFields.load(path)] if path.exists() else []
    for fields in (*generation, top, text):
        if name in fields:
            return fields.integers(name, ())
    return () if name in text.values else TEXT_DEFAULTS[model_type][name]


def parse_dtype(top: JsonFields, text: JsonFields) -> WeightDType:
    """The type that the weights are stored in."""
    for fields in (top, text):
        for name in ("dtype", "torch_dtype"):
            if name in fields:
                return cast(WeightDType, fields.choice(name, "", get_args(WeightDType)))
    return "float32"
