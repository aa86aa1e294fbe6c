"""Every row of a manifest checked as a run would, without weights or torch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from vlmbatch.config import ManifestConfig, SessionConfig
from vlmbatch.errors import RowError
from vlmbatch.hf.checkpoint import HfConfig
from vlmbatch.images.loading.shared_fetches import KEEP_SECONDS
from vlmbatch.log import logger
from vlmbatch.manifest.validate import FETCH_THREADS, THREADS, ImageGrids, validate_rows
from vlmbatch.session.cores import default_image_workers
from vlmbatch.session.image_grids import DecodedGrids, HeaderGrids
from vlmbatch.session.open import open_images, open_inputs, opening_stage
from vlmbatch.stats import RunStats
from vlmbatch.types import Row


def validate(
    config: SessionConfig,
    manifest: ManifestConfig,
    stats: RunStats,
    *,
    decode_images: bool = False,
) -> Generator[tuple[Row, RowError | None]]:
    """Check every row as ``run`` would, without weights or torch; yields each with its error.

    What a GPU is to decode, workers decode here: the same images are refused.

    Raises:
        UsageError: model, image arguments or manifest cannot be used.
    """
    stats.stage = opening_stage(config)
    inputs = open_inputs(config, manifest, streaming=manifest.source == "-", stats=stats)
    if isinstance(inputs.model, HfConfig):
        logger.info(
            "how many tokens images take is known to the run alone: rows may turn out too long for "
            "the context of %d tokens; all else is checked",
            inputs.model.context_length,
        )
    stats.stage = "reading the manifest"
    if not inputs.streaming:
        stats.rows_total = inputs.manifest.scan().num_rows
    stats.stage = "checking rows"
    threads = FETCH_THREADS if inputs.manifest.fetches_images else THREADS
    grids: ImageGrids
    if decode_images:
        num_workers = config.image_loading.workers
        if num_workers is None:
            num_workers = default_image_workers(engine_on_cpu=False)
        if config.image_loading.decoder == "gpu":
            config = replace(config, image_loading=replace(config.image_loading, decoder="exact"))
        grids = DecodedGrids(open_images(config, inputs, num_workers, keep_s=KEEP_SECONDS))
        if not inputs.manifest.fetches_images:
            threads = max(2, 2 * num_workers)
    else:
        grids = HeaderGrids(config, inputs)
    yield from validate_rows(inputs.manifest.rows(), inputs.processor, grids, threads)
