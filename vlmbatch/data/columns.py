"""What a manifest's columns are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmbatch.config import ManifestConfig
from vlmbatch.data.schema import RESERVED_COLUMNS
from vlmbatch.errors import ConfigError

MESSAGES_COLUMN = "messages"
SAMPLING_COLUMNS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


@dataclass(frozen=True, slots=True)
class Columns:
    """The input columns' names. All others pass through to the output.

    Raises:
        ConfigError: one name given to two columns.
    """

    prompt: str = "prompt"
    image: str = "image"
    id: str = "id"
    inputs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = [self.prompt, self.image, self.id, MESSAGES_COLUMN, *SAMPLING_COLUMNS]
        for name in names[:3]:
            if names.count(name) > 1:
                raise ConfigError(
                    f'column "{name}" cannot be two inputs at once: prompt is read from '
                    f'"{self.prompt}", image from "{self.image}", id from "{self.id}"'
                )
        object.__setattr__(self, "inputs", frozenset(names))

    @classmethod
    def from_config(cls, config: ManifestConfig) -> Columns:
        return cls(config.prompt_column, config.image_column, config.id_column)

    def images_of(self, values: Mapping[str, Any]) -> Sequence[Any]:
        """A row's images, not checked yet: each a path, bytes, or a dict of both."""
        images = values.get(self.image)
        return images if isinstance(images, list) else (images,)

    def is_reserved(self, name: str) -> bool:
        """Whether a pass-through column of this name would collide with one of the output."""
        return name in RESERVED_COLUMNS and name not in self.inputs


def is_request(values: Mapping[str, object]) -> bool:
    """Whether a line looks like a request of an OpenAI batch file."""
    return "custom_id" in values and "body" in values


def reserved_message(name: str) -> str:
    """What to do about a pass-through column whose name the output needs."""
    return (
        f'column "{name}" has a name that the output reserves: rename it, or, if it is an input, '
        "name it with --prompt-column, --image-column or --id-column"
    )
