"""A checkpoint's processor, made by transformers. Never its own Python code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmbatch.errors import CheckpointError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.hf.library import CONFIG_FAILURES, shown

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_library_processor(folder: Path, config: HfConfig) -> Any:
    """The processor of a checkpoint, with image processors that do without torchvision if there
    are.

    Raises:
        CheckpointError: a file is missing, or it needs what is not installed.
    """
    from transformers import AutoProcessor

    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise CheckpointError(
            f"{folder}: the checkpoint has no {' or '.join(_PROCESSOR_FILES)}, which "
            f"transformers' processor of {config.model_type} is read from"
        )
    try:
        library = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, config=config.config
        )
    except ImportError as error:
        raise _missing_package(folder, config, error) from error
    except CONFIG_FAILURES as error:
        raise CheckpointError(
            f"{folder}: transformers {config.version} cannot make a processor of the checkpoint's "
            f"files: {shown(error)}"
        ) from error
    if not hasattr(library, "image_processor") or not hasattr(library, "tokenizer"):
        raise CheckpointError(
            f"{folder}: transformers {config.version} makes a {type(library).__name__} of the "
            f"checkpoint's files, expected a processor for text and images; "
            f"{' or '.join(_PROCESSOR_FILES)} must name one"
        )
    return library


def _missing_package(folder: Path, config: HfConfig, error: ImportError) -> CheckpointError:
    text = str(error)
    packages = [name for name in ("torchvision", "sentencepiece", "tiktoken") if name in text]
    hint = f": run pip install {' '.join(packages)}" if packages else ""
    needs = " and ".join(packages) or shown(error)
    return CheckpointError(
        f"{folder}: transformers' processor of {config.model_type} needs {needs}, which is not "
        f"installed{hint}"
    )
