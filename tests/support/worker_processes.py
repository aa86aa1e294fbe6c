"""Worker processes as the operating system sees them (Linux), and an image processor for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vlmbatch.models.llava.image_processor import LlavaImageProcessor

HOSTILE_DECODERS = Path(__file__).with_name("hostile_decoders")
PHOTOS = Path(__file__).parents[1] / "photos"

PROCESSOR = LlavaImageProcessor(
    resize_to=48,
    resample=Image.Resampling.BICUBIC,
    crop_to=(48, 64),
    pad_color=None,
    rescale_factor=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    output_size=(48, 64),
    patches=(3, 4),
    num_tokens=12,
)


IMAGE_WORKER, ENGINE = b"vlmbatch.images.loading.worker", b"vlmbatch.replicas.worker_main"


def worker_pids(parent: int, module: bytes = IMAGE_WORKER) -> set[int]:
    """Live processes of ``module`` that ``parent`` started."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
            continue
        if module in command and int(status[1]) == parent:
            found.add(int(folder.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Fail unless the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
