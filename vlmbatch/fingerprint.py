"""What makes two runs the same run, as one digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmbatch.config import RunConfig

SCHEMA_VERSION = 1  # raised when the same inputs would give another output table

_END_BYTES = 2**20


def run_settings(
    config: RunConfig, folder: Path, manifest_sha256: str | None, processor_fingerprint: str
) -> dict[str, Any]:
    """Everything that decides the answers, by name, so that a difference can be named."""
    return {
        "schema": SCHEMA_VERSION,
        "manifest": manifest_sha256,
        "columns": [
            config.manifest.prompt_column,
            config.manifest.image_column,
            config.manifest.id_column,
        ],
        "limit": config.manifest.limit,
        "model": checkpoint_digest(folder),
        "processor": processor_fingerprint,
        "sampling": asdict(config.sampling),
        "image_limits": asdict(config.image_limits),
        "dtype": config.engine.dtype,
        "max_model_len": config.engine.max_model_len,
    }


def fingerprint(settings: dict[str, Any]) -> str:
    """Hex digest of the settings."""
    canonical = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """Digest of a checkpoint's small files, and of the names, sizes and ends of its tensors' files.

    Weights that were trained further differ in their first and last megabyte too; to read all of
    them would take as long as to load them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_END_BYTES))
                file.seek(max(0, path.stat().st_size - _END_BYTES))
                digest.update(file.read(_END_BYTES))
        elif path.suffix in (".json", ".jinja", ".model") and path.is_file():
            digest.update(path.name.encode() + b"\n" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
