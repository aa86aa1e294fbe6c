"""``--write-text``: the answers of a run as files too."""

from __future__ import annotations

import os
from pathlib import Path

from vlmbatch.config import JobConfig, StdoutDestination
from vlmbatch.errors import UsageError
from vlmbatch.jobs.run_output import DurableOutput
from vlmbatch.output.finished import finished_results
from vlmbatch.output.stored_texts import StoredTextFolder
from vlmbatch.output.text_folder import TextFolder
from vlmbatch.output.text_names import text_name
from vlmbatch.output.text_writer import TextWriter
from vlmbatch.remote.filesystem import open_filesystem
from vlmbatch.session.open import Inputs
from vlmbatch.types import Result


def text_folder_of(config: JobConfig, inputs: Inputs) -> TextFolder | None:
    """The folder that the run writes answers to, if any; not looked at yet.

    Raises:
        UsageError: the run's manifest cannot have one, or not there.
        ConfigError: a store that cannot be opened.
    """
    if config.text_folder is None:
        return None
    path = config.text_folder
    if inputs.streaming:
        raise UsageError(
            f"--write-text {config.text_url or path}: the ids of standard input are not known "
            "before its rows are answered: write to a file with -o answers.parquet, or name a "
            "manifest"
        )
    _refuse_sidecars(config, path)
    owner = config.output_url
    if owner is None and not isinstance(config.destination, StdoutDestination):
        owner = os.path.realpath(config.destination.path)
    if config.text_url is not None:
        return StoredTextFolder(open_filesystem(config.text_url), path, owner)
    return TextFolder(path, owner)


def write_finished_texts(output: DurableOutput, inputs: Inputs, folder: TextFolder) -> None:
    """Write what is not there yet of the answers of an output that an earlier run has finished.

    Raises:
        UsageError: something else has changed the output.
        OutputError: a file cannot be read or written.
    """
    own = inputs.manifest.rows_wanted
    writer = TextWriter(folder)
    with finished_results(output.path, len(own)) as results:
        answered = results.answered()
        for index, row_id in enumerate(inputs.manifest.ids()):
            if index not in own:
                continue
            place = index - own.start
            result = Result(place, row_id)
            writer.write(results.result(place) if answered[place] else result)
    writer.finish()


def _refuse_sidecars(config: JobConfig, path: Path) -> None:
    """Answers must not be the columns of the next run."""
    ending = Path(text_name("a")).suffix
    if ending not in config.manifest.sidecars:
        return
    source, folder = os.path.realpath(config.manifest.source), os.path.realpath(path)
    if Path(folder).is_relative_to(source) or Path(source).is_relative_to(folder):
        raise UsageError(
            f"--write-text {path}: with --sidecar {ending} a run on {config.manifest.source} would "
            "read its own answers: name another folder"
        )
