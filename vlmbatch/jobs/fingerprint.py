"""What makes two runs the same run, as one digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmbatch.config import JobConfig
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.manifest.manifest import ManifestInfo
from vlmbatch.session.open import Inputs

SCHEMA_VERSION = 1  # raised when the same inputs would give another output table

_END_BYTES = 2**20
_PIECE_BYTES = 2**16
_NUM_PIECES = 64


def run_settings(config: JobConfig, inputs: Inputs, info: ManifestInfo) -> dict[str, Any]:
    """Everything that decides the answers, by name, so that a difference can be named.

    ``info``: what a scan of the manifest of ``inputs`` has found.
    """
    session, manifest = config.session, config.manifest
    limits, root = session.image_limits, session.image_limits.root
    # Absent where nobody asks for it, as in runs of versions that had no such options.
    shape: dict[str, Any] = {}
    if manifest.column_prefix:
        shape["column_prefix"] = manifest.column_prefix
    if manifest.prompt is not None:
        shape["prompt"] = manifest.prompt
    if manifest.dpi is not None:
        shape["dpi"] = manifest.dpi
    if manifest.pages is not None:
        shape["pages"] = manifest.pages
    if manifest.sidecars:
        shape["sidecars"] = list(manifest.sidecars)
    if manifest.keep_inputs:
        shape["keep_inputs"] = True
    if manifest.parse_json:
        shape["parse_json"] = True
    if manifest.sample is not None:
        shape |= {"sample": manifest.sample, "sample_seed": manifest.sample_seed}
    if session.engine.quantize is not None:
        shape["quantize"] = session.engine.quantize
    if session.engine.kv_cache_dtype != "auto":
        shape["kv_cache_dtype"] = session.engine.kv_cache_dtype
    if isinstance(inputs.model, HfConfig):
        shape["engine"] = f"transformers {inputs.model.version}"
    if session.image_loading.decoder != "exact":
        shape["image_decoder"] = session.image_loading.decoder
    resolution = asdict(session.image_arguments.resolution)
    shape |= {name: value for name, value in resolution.items() if value is not None}
    images_from = info.image_base
    if isinstance(images_from, Path):
        images_from = str(images_from.resolve())
    return {
        **shape,
        "schema": SCHEMA_VERSION,
        "manifest": info.sha256,
        "format": inputs.manifest.format,
        "images_from": images_from,
        "columns": [
            config.manifest.prompt_column,
            config.manifest.image_column,
            config.manifest.id_column,
        ],
        "limit": config.manifest.limit,
        "model": checkpoint_digest(inputs.folder),
        "processor": inputs.processor.settings,
        "image_input_type": session.image_arguments.image_input_type,
        "sampling": config.sampling.settings(),
        "image_limits": {**asdict(limits), "root": None if root is None else str(root.resolve())},
        "dtype": session.engine.dtype,
        "random_weights": session.engine.random_weights,
        "max_model_len": session.engine.max_model_len,
    }


def fingerprint(settings: dict[str, Any]) -> str:
    """Hex digest of the settings."""
    canonical = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """Digest of a checkpoint's small files, and of samples of its tensors' files.

    To read all of the weights would take as long as to load them. Their names, sizes, first and
    last megabyte and 64 pieces between are read: weights that were trained further differ in all of
    them. A change by hand that lies between two pieces, a 65th of the file apart, is not noticed.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for start, length in _samples(size):
                    file.seek(start)
                    digest.update(file.read(length))
        elif path.suffix in (".json", ".jinja", ".model") and path.is_file():
            digest.update(path.name.encode() + b"\n" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _samples(size: int) -> list[tuple[int, int]]:
    """Start and length of what is read of a file of weights; all of it where that is not more."""
    if size <= 2 * _END_BYTES + _NUM_PIECES * _PIECE_BYTES:
        return [(0, size)]
    pieces = [
        (size * number // (_NUM_PIECES + 1), _PIECE_BYTES) for number in range(1, _NUM_PIECES + 1)
    ]
    return [(0, _END_BYTES), *pieces, (size - _END_BYTES, _END_BYTES)]
