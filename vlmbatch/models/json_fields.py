"""Typed reads from a checkpoint's JSON files; an error names the file, the field and the value."""

from __future__ import annotations

import json
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, overload

from vlmbatch.errors import CheckpointError
from vlmbatch.models import git_lfs

_ACTIVATIONS = {  # names in checkpoints to names in the model code
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
}


MAX_SIZE = 2**18  # of one dimension of a weight but the vocabulary; published: 53,248
MAX_LAYERS = 1024  # published models have up to 126
_MAX_INTEGER = 2**31 - 1
_MAX_NUMBER = 1e300  # an integer may be beyond any float
_MAX_CHANNEL = 1e6  # of means and deviations: published ones are below 1000
_MAX_JSON_BYTES = 64 * 2**20  # published files have up to a few megabytes


def check_file(path: Path, max_bytes: int) -> None:
    """Refuse what it would take very long to read, or for ever.

    Raises:
        CheckpointError: a pipe, a device or a folder, a file of more than ``max_bytes``, or one
            that only stands for another.
        OSError: the file cannot be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a file")
    if status.st_size > max_bytes:
        raise CheckpointError(
            f"{path}: {status.st_size} bytes, over the limit of {max_bytes} for such a file"
        )
    with path.open("rb") as file:
        if git_lfs.is_pointer(file.read(64)):
            raise CheckpointError(f"{path} is {git_lfs.IS_POINTER}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, too large, not JSON or not an object.
    """
    try:
        check_file(path, _MAX_JSON_BYTES)
        text = path.read_bytes()
        value = json.loads(text)
        if rb"\ud" in text.lower():  # perhaps half of a pair, which no message could be written of
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder in the Hugging Face layout has one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: has a lone surrogate, which is no character") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class JsonFields:
    """One JSON object, read field by field. A missing or null field gives the default."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def load(cls, path: Path) -> JsonFields:
        return cls(read_json(path), str(path))

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are not null."""
        return {name: value for name, value in self.values.items() if value is not None}

    def error(self, name: str, expected: str) -> CheckpointError:
        """What to raise for a field whose value is not the expected one."""
        value = repr(self.values.get(name))
        shown = value if len(value) <= 200 else value[:200] + "..."
        return CheckpointError(f"{self.where}: {name} is {shown}, expected {expected}")

    def section(self, name: str) -> JsonFields | None:
        """The object under ``name``, or None."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return JsonFields(value, f"{self.where}: {name}")

    @overload
    def integer(
        self, name: str, default: int, *, minimum: int = 1, maximum: int = _MAX_INTEGER
    ) -> int: ...
    @overload
    def integer(
        self, name: str, default: None, *, minimum: int = 1, maximum: int = _MAX_INTEGER
    ) -> int | None: ...
    def integer(
        self, name: str, default: int | None, *, minimum: int = 1, maximum: int = _MAX_INTEGER
    ) -> int | None:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"an integer of at least {minimum}")
        if value > maximum:
            raise self.error(name, f"an integer of at most {maximum}")
        return value

    def size(self, name: str, default: int) -> int:
        """One dimension of a weight, small enough that the product of three can be counted."""
        return self.integer(name, default, maximum=MAX_SIZE)

    def layers(self, name: str, default: int) -> int:
        """How many layers, each of which takes time to make before its weights are looked at."""
        return self.integer(name, default, maximum=MAX_LAYERS)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """One integer or a list of them, of any sign."""
        value = self.values.get(name)
        if value is None:
            return default
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
            raise self.error(name, "an integer or a list of integers")
        if any(abs(item) > _MAX_INTEGER for item in values):
            raise self.error(name, f"integers of at most {_MAX_INTEGER}")
        return tuple(values)

    @overload
    def number(self, name: str, default: float) -> float: ...
    @overload
    def number(self, name: str, default: None) -> float | None: ...
    def number(self, name: str, default: float | None) -> float | None:
        value = self.values.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < _MAX_NUMBER:
            raise self.error(name, "a number above 0")
        return float(value)

    def channels(
        self, name: str, default: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """A number of any sign for each of red, green and blue; one stands for three."""
        value = self.values.get(name)
        if value is None:
            return default
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3 or not all(
            type(item) in (int, float) and abs(item) <= _MAX_CHANNEL for item in values
        ):
            raise self.error(name, "a number or three, one a channel")
        red, green, blue = map(float, values)
        return red, green, blue

    def boolean(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    @overload
    def string(self, name: str, default: str) -> str: ...
    @overload
    def string(self, name: str, default: None) -> str | None: ...
    def string(self, name: str, default: str | None) -> str | None:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, "a string")
        return value

    def choice(self, name: str, default: str, allowed: Collection[str]) -> str:
        value = self.string(name, default)
        if value not in allowed:
            raise self.error(name, f"one of: {', '.join(allowed)}")
        return value

    def activation(self, name: str, default: str) -> str:
        """An activation function, by its name in the model code."""
        return _ACTIVATIONS[self.choice(name, default, _ACTIVATIONS)]
