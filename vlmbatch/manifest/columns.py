"""What a manifest's columns are called."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmbatch.config import ManifestConfig
from vlmbatch.errors import ConfigError
from vlmbatch.log import logger
from vlmbatch.manifest.schema import RESERVED_COLUMNS

MESSAGES_COLUMN = "messages"
SAMPLING_COLUMNS = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"),
    *("json_schema", "regex", "min_tokens"),
)
CHOICES_COLUMN = "choices"
# Inputs of runs alone whose output has these columns: many data sets have columns of such names.
_INPUTS_WHERE_ASKED = {CHOICES_COLUMN: "choice", "n": "texts", "best_of_retries": "retries"}
_LIKE_IMAGE = {"image", "images", "img", "image_path", "image_url", "image_file", "file_name"}
RESOLUTION_COLUMNS = ("max_pixels", "min_pixels")


@dataclass(frozen=True, slots=True)
class Columns:
    """The input columns' names. All others pass through to the output.

    ``prefix``: of the output's own columns; None where there is no such output; ``asked``: those
    that it has beyond the usual ones. ``fields``: columns that are made of answers. ``kept``:
    inputs that are written beside the answers; ``dropped``: those that are not.

    Raises:
        ConfigError: one name given to two columns.
    """

    prompt: str = "prompt"
    image: str = "image"
    id: str = "id"
    prefix: str | None = ""
    keep_inputs: bool = False
    asked: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()
    inputs: frozenset[str] = field(init=False)
    kept: frozenset[str] = field(init=False, default=frozenset())
    dropped: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = [self.prompt, self.image, self.id]
        names += [MESSAGES_COLUMN, *SAMPLING_COLUMNS, *RESOLUTION_COLUMNS]
        names += [name for name, output in _INPUTS_WHERE_ASKED.items() if output in self.asked]
        for name in names[:3]:
            if names.count(name) > 1:
                raise ConfigError(
                    f'column "{name}" cannot be two inputs at once: prompt is read from '
                    f'"{self.prompt}", image from "{self.image}", id from "{self.id}"'
                )
        object.__setattr__(self, "inputs", frozenset(names))
        if self.keep_inputs:
            kept = frozenset({self.prompt, self.image, MESSAGES_COLUMN})
            object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "dropped", self.inputs - self.kept)

    @classmethod
    def from_config(cls, config: ManifestConfig, asked: tuple[str, ...] = ()) -> Columns:
        return cls(
            config.prompt_column,
            config.image_column,
            config.id_column,
            config.column_prefix,
            config.keep_inputs,
            asked,
        )

    @property
    def renamed(self) -> dict[str, str]:
        """The input columns that have another name than by default: option to name."""
        given = {
            "--prompt-column": self.prompt,
            "--image-column": self.image,
            "--id-column": self.id,
        }
        return {option: name for option, name in given.items() if name != option[2:-7]}

    def images_of(self, values: Mapping[str, Any]) -> Sequence[Any]:
        """A row's images, not checked yet: each a path, bytes, or a dict of both."""
        images = values.get(self.image)
        return images if isinstance(images, list) else (images,)

    def is_reserved(self, name: str) -> bool:
        """Whether a column of this name in the output would collide with one of its own."""
        return name not in self.dropped and (self.is_own(name) or name in self.fields)

    def is_own(self, name: str) -> bool:
        """Whether the output has a column of this name that is not made of the manifest's."""
        if self.prefix is None or not name.startswith(self.prefix):
            return False
        own = name.removeprefix(self.prefix)
        return own in RESERVED_COLUMNS or own in self.asked

    def reserved_message(self, name: str) -> str:
        """What to do about a pass-through column whose name the output needs."""
        if name in self.fields:
            return (
                f'column "{name}" has the name of a property of --json-schema, which --parse-json '
                "makes a column of: rename one of them, or leave --parse-json out"
            )
        return (
            f'column "{name}" has a name that the output reserves: give the output\'s own columns '
            "others with --column-prefix, such as --column-prefix vlmbatch_, or rename it, or, if "
            "it is an input, name it with --prompt-column, --image-column or --id-column"
        )


def is_request(values: Mapping[str, object]) -> bool:
    """Whether a line looks like a request of an OpenAI batch file."""
    return "custom_id" in values and "body" in values


def missing_message(option: str, name: str, present: Sequence[str]) -> str:
    """What to do about an input column that was named and is nowhere."""
    message = f'{option} {name}: no row has a column "{name}" (present: {", ".join(present):.200})'
    if name.rpartition(".")[0] in present:
        return f"{message}; a field of a column cannot be named: make it a column of its own"
    if close := difflib.get_close_matches(name, present, n=1):
        return f'{message}; did you mean "{close[0]}"?'
    return message


def passed_over_image(columns: Columns, present: Sequence[str]) -> str | None:
    """What to say of a manifest without its image column that has one called much like it."""
    if columns.image in present or columns.image != "image" or "image" not in columns.inputs:
        return None
    for name in present:
        if name.strip().casefold() in _LIKE_IMAGE and name not in columns.inputs:
            return (
                f'no row has an image: they are read from column "{columns.image}", which is not '
                f'there; with --image-column they would be from "{name}"'
            )
    return None


class NamedColumns:
    """Which of the columns that a user has named no row of a stream has had so far."""

    def __init__(self, renamed: dict[str, str]) -> None:
        self._unseen = renamed
        self._present: list[str] = []  # in the first row that is one

    def see(self, values: Mapping[str, Any]) -> None:
        self._present = self._present or list(values)
        if self._unseen:
            self._unseen = {
                option: name for option, name in self._unseen.items() if name not in values
            }

    def warn_of_unseen(self) -> None:
        """No more than that: the rows are answered when it is known."""
        for option, name in self._unseen.items():
            if self._present:
                logger.warning("%s", missing_message(option, name, self._present))
