"""``vlmbatch features``: compute the features of all images once, for many runs."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vlmbatch import log
from vlmbatch.commands.command import with_options, without
from vlmbatch.commands.contradictions import check_stdout_use
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.local_output import checked_feature_folder
from vlmbatch.commands.places import (
    check_places,
    feature_places,
    report_places,
    session_places,
)
from vlmbatch.commands.report_files import check_report_file, check_summary_file
from vlmbatch.commands.reporting import ERRORS, Reporting, ReportOptions
from vlmbatch.commands.row_errors import RowErrors
from vlmbatch.config import FEATURE_MANIFEST, ManifestConfig, SessionConfig
from vlmbatch.config.option import Opt

_FOLDER = Opt(
    "FOLDER",
    "Folder for the features and their manifest.",
    panel="Input and output",
    short="-o",
)
# Of every image something is wanted, and nothing is answered.
_MANIFEST = without("format", "column_prefix", "keep_inputs", "parse_json", "sample", "sample_seed")
# Prompts are not looked at, and no token is computed.
_TOWER = without(
    *("tokenizer", "image_input_type", "image_token_id", "strict_image_tokens"),
    *("disable_image_processor", "chat", "chat_template", "prompt_template"),
    *("system_prompt", "max_num_seqs", "max_batched_tokens", "kv_cache_tokens", "max_model_len"),
    *("kv_cache_dtype", "no_prefix_caching", "host_memory", "quantize", "tensor_parallel"),
)


@with_options
def features(
    manifest: Annotated[ManifestConfig, _MANIFEST],
    session: Annotated[SessionConfig, _TOWER],
    report: ReportOptions,
    config_file: Path | None,
    output: Annotated[str | None, _FOLDER] = None,
    errors: Annotated[str | None, ERRORS] = None,
) -> None:
    """Store the vision tower's output for every image of MANIFEST.

    FOLDER gets a file for each image and manifest.jsonl, which is MANIFEST with
    these files in the image column: for `run --image-input-type image_features`,
    with any prompts: rows need none here. What is there already is not computed
    again. Rows whose images cannot be read keep them, and are listed. Exits as
    `validate` does.
    """
    check_report_file("--errors", errors)
    check_summary_file(report.summary_json)
    check_stdout_use(report.summary_json, data_on_stdout=errors == "-")
    folder = checked_feature_folder(output)
    check_places(
        [
            *feature_places(folder),
            *report_places(errors=errors, summary_json=report.summary_json),
            *session_places(session, manifest, config_file),
        ],
        manifest.source,
    )
    manifest = replace(manifest, column_prefix=None)
    reporting = Reporting(report, data_on_stdout=errors == "-")
    _features(session, manifest, folder, reporting, errors)


def _features(
    session: SessionConfig,
    manifest: ManifestConfig,
    folder: str,
    report: Reporting,
    errors: str | None,
) -> None:
    from vlmbatch.display.summary import print_feature_summary
    from vlmbatch.jobs.features import write_features
    from vlmbatch.stats import RunStats

    stats = RunStats()
    details = {"model": session.model, "output": folder}
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: f"{stats.rows_done:,} rows are done; run the command again to resume"),
        report.display(stats),
        RowErrors(stats, errors) as found,
    ):
        written = write_features(session, manifest, Path(folder), stats, found.add)
    report.finish(
        stats,
        {**details, "images_computed": written.num_encoded},
        lambda: print_feature_summary(
            stats,
            written.num_encoded,
            found.examples,
            _next_command(session, manifest, folder, needs_prompt=written.lacks_prompts),
            log.console(),
        ),
    )


def _next_command(
    session: SessionConfig, manifest: ManifestConfig, folder: str, *, needs_prompt: bool
) -> str:
    """The run that answers the manifest that was written."""
    command = ["vlmbatch", "run", str(Path(folder) / FEATURE_MANIFEST), "-m", session.model]
    command += ["--image-input-type", "image_features", "-o", "answers.parquet"]
    defaults = ManifestConfig("")
    for option in ("prompt", "prompt_column", "image_column", "id_column"):
        if (name := getattr(manifest, option)) != getattr(defaults, option):
            command += [f"--{option.replace('_', '-')}", name]
    if needs_prompt and manifest.prompt is None:
        command += ["--prompt", "Describe the picture."]
    return shlex.join(command)
