"""A checkpoint's processor, made by transformers. Never its own Python code."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from vlmbatch.errors import CheckpointError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.hf.library import config_failures, shown
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.tokenizer import is_of_backend

# What processors raise on prompts and images that they cannot take.
ROW_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SIDES = ("height", "width", "shortest_edge", "longest_edge", "size", "crop_size")
_SEQUENCES = ("image_seq_len", "image_seq_length", "num_query_tokens", "num_image_tokens")
_MOST = dict.fromkeys(_SIDES, 4096) | dict.fromkeys(_SEQUENCES, 2**16)  # published: 1540, 4096
_PACKAGES = ("torchvision", "sentencepiece", "tiktoken")


class LibraryProcessor:
    """One of transformers' processors, called for a row at a time. Thread-safe.

    ``image_token``: what it calls so, if anything. ``num_tokens``: of its vocabulary.
    """

    def __init__(self, library: Any) -> None:
        token = getattr(library, "image_token", None)
        self.image_token = None if token is None else str(getattr(token, "content", token))
        self.num_tokens = len(library.tokenizer)
        self._library = library
        self._lock = threading.Lock()  # the tokenizers in processors are not thread-safe
        self._nests = True  # images are given as a list a prompt, which most want

    def __call__(
        self, text: str, images: Sequence[Image.Image], add_special_tokens: bool = True
    ) -> dict[str, Any]:
        """The model's arguments for one prompt, tensors with a first dimension of 1 or of images.

        Raises one of ``ROW_FAILURES`` where it takes no such prompt.
        """
        options = {} if add_special_tokens else {"add_special_tokens": False}
        given = [list(images)] if self._nests else list(images)
        with self._lock:
            try:
                found = self._library(
                    text=[text], images=given if images else None, return_tensors="pt", **options
                )
            except BaseException as error:
                if not is_of_backend(error):
                    raise
                raise ValueError(str(error)) from error
        tensors = dict(found)
        tensors.pop("labels", None)  # which some make for training
        return tensors

    def try_image(self, text: str, image: Image.Image) -> dict[str, Any] | None:
        """The arguments for a prompt with one image, given in the way that the processor takes.

        None where it takes the prompt in neither.
        """
        for nests in (True, False):
            self._nests = nests
            try:
                return self(text, [image])
            except ROW_FAILURES:
                continue
        self._nests = True
        return None


def load_library_processor(folder: Path, config: HfConfig) -> LibraryProcessor:
    """The processor of a checkpoint, with an image processor that does without torchvision where
    there is one.

    Raises:
        CheckpointError: a file is missing, or it needs what is not installed.
    """
    from transformers import AutoProcessor

    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise CheckpointError(
            f"{folder}: the checkpoint has no {' or '.join(_PROCESSOR_FILES)}, which "
            f"transformers' processor of {config.model_type} is read from"
        )
    for path in (folder / name for name in _PROCESSOR_FILES):
        if path.is_file():
            _check_sizes(JsonFields.load(path))
    try:
        library = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, config=config.config
        )
    except ImportError as error:
        raise _missing_package(folder, config, error) from error
    except config_failures() as error:
        if "video processor" in str(error) and find_spec("torchvision") is None:
            raise _missing_package(folder, config, ImportError("torchvision")) from error
        raise CheckpointError(
            f"{folder}: transformers {config.version} cannot make a processor of the checkpoint's "
            f"files: {shown(error)}"
        ) from error
    if not hasattr(library, "image_processor") or not hasattr(library, "tokenizer"):
        raise CheckpointError(
            f"{folder}: transformers {config.version} makes a {type(library).__name__} of the "
            f"checkpoint's files, expected a processor of text and images, which "
            f"{' or '.join(_PROCESSOR_FILES)} names"
        )
    return LibraryProcessor(library)


def _check_sizes(fields: JsonFields) -> None:
    """Images are made as large as the file says, and prompts as long, whatever they are.

    Raises:
        CheckpointError: it says more than any published processor by far.
    """
    counts_pixels = "merge_size" in fields  # as Qwen-VL's, by the names of edges
    for name, value in fields.values.items():
        if isinstance(value, dict):
            if not (counts_pixels and name == "size"):
                _check_sizes(JsonFields(value, f"{fields.where}: {name}"))
        elif isinstance(value, int):
            most = _MOST.get(name)
            if most is not None and value > most:
                raise fields.error(name, f"an integer of at most {most}")


def _missing_package(folder: Path, config: HfConfig, error: ImportError) -> CheckpointError:
    missing = [name for name in _PACKAGES if name in str(error).lower()]
    needs = f"{' and '.join(missing)}, which is not installed" if missing else shown(error)
    hint = f": run pip install {' '.join(missing)}" if missing else ""
    return CheckpointError(
        f"{folder}: transformers' processor of {config.model_type} needs {needs}{hint}"
    )
