"""From what the user calls a model, a folder or a Hugging Face id, to a local folder."""

from __future__ import annotations

import difflib
import threading
from pathlib import Path
from typing import Any

from vlmbatch.config.shipped import is_config
from vlmbatch.errors import CheckpointError
from vlmbatch.stats import RunStats, Transfer

# No pickles: loading one runs the code inside it.
_PROCESSOR_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_ALLOWED_FILES = [*_PROCESSOR_FILES, "*.safetensors"]
_IGNORED_FILES = ["*/*"]  # subfolders hold the same weights in other formats


def resolve_model(
    path_or_id: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    stats: RunStats | None = None,
) -> Path:
    """The local folder of a checkpoint, downloaded first where the name is a Hub id.

    Without ``weights`` only what a tokenizer or an image processor needs is downloaded. ``stats``
    is told of bytes that arrive; without it the library shows its own bars.
    ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are respected.

    Raises:
        CheckpointError: neither a folder nor a model that can be fetched.
    """
    path = Path(path_or_id).expanduser()
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        raise CheckpointError(f"{path_or_id!r}: cannot be looked at: {error}") from error
    if exists:
        raise CheckpointError(f"{path_or_id}: is a file; give the checkpoint's folder")
    if path.is_absolute() or path_or_id.startswith((".", "~")) or path_or_id.count("/") != 1:
        named = f"; it is a configuration: --config {path_or_id}" if is_config(path_or_id) else ""
        raise CheckpointError(
            f"{path_or_id}: no such folder{_nearby_folder(path)}, and not a Hugging Face id "
            f"such as llava-hf/llava-1.5-7b-hf{named}"
        )
    return _download(path_or_id, revision, weights, stats)


def _nearby_folder(path: Path) -> str:
    """A question about a checkpoint's folder beside ``path`` that has nearly its name."""
    beside = {folder.parent.name: folder.parent for folder in path.parent.glob("*/config.json")}
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f" (did you mean {beside[close[0]]}?)" if close else ""


def _download(model_id: str, revision: str | None, weights: bool, stats: RunStats | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    prefix = f"{model_id}: no such local folder{_nearby_folder(Path(model_id))}, and "
    try:
        folder = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=_ALLOWED_FILES if weights else _PROCESSOR_FILES,
            ignore_patterns=_IGNORED_FILES,
            tqdm_class=None if stats is None else _silent_bars(stats),
        )
    except HFValidationError as error:
        raise CheckpointError(f"{prefix}not a valid Hugging Face id: {error}") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{prefix}on the Hugging Face Hub its access must be asked for: accept its terms "
            "there, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{prefix}no such model on the Hugging Face Hub; check the spelling, and set HF_TOKEN "
            "if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{model_id}: no revision {revision!r} on the Hugging Face Hub"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{prefix}it is not in the local cache and the Hugging Face Hub cannot be reached "
            "(HF_HUB_OFFLINE set, or no network); download it once with a connection, or give a "
            "local folder"
        ) from error
    except OSError as error:  # other HTTP errors, and a full disk
        raise CheckpointError(f"{prefix}downloading it failed: {error}") from error
    finally:
        if stats is not None:
            stats.transfer = None
    return Path(folder)


def _silent_bars(stats: RunStats) -> type:
    """What huggingface_hub takes for its bars: shows nothing, and has ``stats`` count the bytes.

    It may have two that count them, of what has arrived and of what is written: the further counts.
    """
    from tqdm.auto import tqdm

    bars: list[tqdm] = []
    lock = threading.Lock()

    class SilentBar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})
            self._counts_bytes = options.get("unit") == "B"
            if self._counts_bytes:
                bars.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            self.refresh()

        def refresh(self, *_: object, **__: object) -> None:
            if not self._counts_bytes:
                return
            with lock:
                done = max(int(bar.n) for bar in bars)
                if total := max(int(bar.total or 0) for bar in bars):
                    stats.transfer = Transfer(max(total, done), done)

    return SilentBar
