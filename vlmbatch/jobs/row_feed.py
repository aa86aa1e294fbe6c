"""The feed of a run: rows of its manifest, read and prepared ahead of the engine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vlmbatch.config import JobConfig
from vlmbatch.durable.spill import Spill
from vlmbatch.jobs.run_output import Output
from vlmbatch.manifest.arrow_values import TIME_REDUCERS
from vlmbatch.session.host_memory import HostMemory
from vlmbatch.session.open import Inputs
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.grouping import RowGroups
from vlmbatch.stages.prepare import start_preparing

if TYPE_CHECKING:
    from vlmbatch.images.loading.loader import ImageLoader

# They tokenize, and wait for room among the images under way. More of them would mostly take the
# interpreter lock from each other, and from who launches steps.
_PREPARE_THREADS = 2
_FETCH_THREADS = 32  # that may wait for images from the network besides


def start_feed(config: JobConfig, inputs: Inputs, images: ImageLoader, output: Output) -> RowFeed:
    """Begin to read the manifest's rows, and to prepare as many as may wait."""
    memory = HostMemory.divide(config.session.host_memory)
    groups = None
    if (last_uses := inputs.manifest.last_image_uses) is not None:
        groups = RowGroups(
            last_uses, Spill(memory.rows, output.folder, reducers=TIME_REDUCERS), memory.encoded
        )
    return RowFeed(
        output.watch(inputs.manifest.rows()),
        partial(start_preparing, processor=inputs.processor, loader=images, known=output.known),
        threads=_PREPARE_THREADS + (_FETCH_THREADS if inputs.manifest.fetches_images else 0),
        depth=config.queue_rows,
        window=memory.window_rows,
        max_bytes=memory.encoded,
        image_bytes=inputs.processor.largest_grid.num_bytes,
        max_pixel_bytes=memory.pixels,
        groups=groups,
    )
