"""A model opened and loaded: what a run, the Python API and the server have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from vlmbatch.config.engine import EngineConfig
from vlmbatch.config.images import ImageArguments, ImageLimits, ImageLoading
from vlmbatch.config.option import Opt
from vlmbatch.config.shipped import find_chat_template
from vlmbatch.errors import FieldError

MIN_HOST_MEMORY = 2**24  # bytes

MODEL = Opt(
    "NAME",
    "Checkpoint folder, or Hub id such as llava-hf/llava-1.5-7b-hf.",
    panel="Model",
    short="-m",
    filled=True,
    absent="no model given: add --model with a checkpoint folder or a Hub id, or --config with a "
    "file that has one",
)
_model = partial(Opt, panel="Model")
_prompt = partial(Opt, panel="Prompt")


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """How a row's text becomes the model's prompt.

    Raises:
        ConfigError: ``chat_template`` is neither a file nor the name of one of ours.
    """

    chat: Annotated[bool, _prompt("", "Apply the model's chat template, image first.")] = False
    chat_template: Annotated[
        Path | None,
        _prompt(
            "FILE",
            "Jinja template in place of the model's, or the name of one that comes with vlmbatch: "
            "llava-1.5.",
        ),
    ] = None
    prompt_template: Annotated[
        str | None, _prompt("TEXT", "Text around each prompt, which replaces {prompt}.")
    ] = None
    system_prompt: Annotated[str | None, _prompt("TEXT", "System message of every chat.")] = None

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            object.__setattr__(self, "chat_template", find_chat_template(self.chat_template))


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Which model, and how it takes prompts and images.

    Raises:
        ConfigError: a value out of range.
    """

    model: Annotated[str, MODEL]
    revision: Annotated[
        str | None, _model("NAME", "Branch, tag or commit on the Hub.", filled=True)
    ] = None
    tokenizer: Annotated[
        str | None, _model("NAME", "Folder or Hub id of another tokenizer.", filled=True)
    ] = None
    image_arguments: ImageArguments = field(default_factory=ImageArguments)
    image_limits: ImageLimits = field(default_factory=ImageLimits)
    image_loading: ImageLoading = field(default_factory=ImageLoading)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    host_memory: Annotated[
        int | None,
        Opt(
            "SIZE",
            "Host memory for what waits, such as 4GiB; absent: an eighth, at most 1GiB.",
            panel="Engine",
            unit="size",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.host_memory is not None and self.host_memory < MIN_HOST_MEMORY:
            raise FieldError(
                "host_memory",
                f"must be at least {MIN_HOST_MEMORY} bytes (16MiB), got {self.host_memory}",
            )
