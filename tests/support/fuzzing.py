"""What the fuzz tests share: damage to bytes and JSON, and a model that costs nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fake_model import FakeBackend, FakeModel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from in_process import call
from torch import Tensor

from vlmbatch.config import EngineConfig
from vlmbatch.engine.assembly import make_engine
from vlmbatch.engine.engine import Engine
from vlmbatch.models.config import ModelConfig
from vlmbatch.types import ImageGrid

MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
OK, ERROR_ROWS, REFUSED = 0, 1, 2
SCALE = int(os.environ.get("FUZZ_SCALE", "1"))  # for long runs by hand


def examples(count: int) -> settings:
    """Settings for ``count`` examples in the suite."""
    return settings(
        max_examples=count * SCALE,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**31, 2**53, 2**63, 10**12, 10**30, 1e308, "", "\0", "\ud800", "a"])
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, originals: dict[str, bytes]) -> bytes:
    """One of the files with some bytes changed, cut out, repeated, or the end cut off."""
    data = bytearray(originals[draw(st.sampled_from(sorted(originals)))])
    for _ in range(draw(st.integers(1, 6))):
        # The first and the last bytes steer most formats' readers.
        size = max(len(data), 1)
        at = draw(
            st.integers(0, size - 1)
            | st.integers(0, min(size, 200) - 1)
            | st.integers(max(size - 200, 0), size - 1)
        )
        length = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(["set", "set", "set", "delete", "repeat", "insert"]))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255) | st.sampled_from([0, 127, 255]))])
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = draw(st.binary(max_size=length))
    keep = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:keep])


@st.composite
def damaged_json(draw: st.DrawFn, original: Any) -> bytes:
    """The JSON with some of its values replaced, removed or joined by others."""
    value = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(min(len(holder), 40))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            child = holder[key]
            if isinstance(child, dict | list) and child and draw(st.integers(0, 3)):
                holder = child
                continue
            if isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
                del holder[key]
            else:
                holder[key] = draw(json_values)
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


class FreeModel(FakeModel):
    """The fake model with as many image tokens as the sample model has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.image_feature_size is not None
        self._image_tokens = config.image_feature_size

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        return [pixels.double().mean().expand(self._image_tokens, 1) for pixels in images]


def free_engine(folder: Path, config: ModelConfig, *_: object, **__: object) -> Engine:
    """In the place of ``build_engine``."""
    limits = EngineConfig(kv_cache_tokens=2048, max_num_seqs=8, max_batched_tokens=512)
    backend, device = FakeBackend(), torch.device("cpu")
    return make_engine(FreeModel(config), config, limits, backend, device, torch.float64)


def run_manifest(manifest: Path, *options: object, model: Path = MODEL) -> tuple[int, Path]:
    """The exit status of a run over ``manifest``, and where its output would be."""
    output = manifest.parent / "out.parquet"
    command: list[object] = ["run", manifest, "-m", model, "-o", output, "--overwrite", "-q"]
    status = call([*command, "--image-workers", "0", "--max-tokens", "2", *options])
    assert status in (OK, ERROR_ROWS, REFUSED), f"exit {status}"
    return status, output
