"""The whole job on one screen: composes the stages of a run."""

from __future__ import annotations

from vlmbatch.config import RunConfig
from vlmbatch.stats import RunStats


def run(config: RunConfig, stats: RunStats) -> RunStats:
    """Answer every row of the manifest and write the output.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used (before any work).
        OutputError: the output cannot be written.
    """
    raise NotImplementedError
