"""``vlmbatch features``: compute the features of all images once, for many runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
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
from vlmbatch.commands.remote_output import feature_destination
from vlmbatch.commands.report_files import check_report
from vlmbatch.commands.reporting import ERRORS, Reporting, ReportOptions
from vlmbatch.commands.row_errors import RowErrors, local_errors
from vlmbatch.commands.urls import check_object, is_url
from vlmbatch.config import FEATURE_MANIFEST, ManifestConfig, SessionConfig
from vlmbatch.config.job import WorkDir
from vlmbatch.config.option import Opt

_EXAMPLE = "s3://BUCKET/features/"
# Of every image something is wanted, and nothing is answered.
_MANIFEST = without("format", "column_prefix", "keep_inputs", "parse_json", "sample", "sample_seed")
# Prompts are not looked at, and no token is computed.
_TOWER = without(
    *("tokenizer", "image_input_type", "image_token_id", "strict_image_tokens"),
    *("disable_image_processor", "chat", "chat_template", "prompt_template"),
    *("system_prompt", "max_num_seqs", "max_batched_tokens", "kv_cache_tokens", "max_model_len"),
    *("kv_cache_dtype", "no_prefix_caching", "host_memory", "quantize", "tensor_parallel"),
)


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """Where the features go."""

    output: Annotated[
        str | None,
        Opt(
            "FOLDER",
            "Folder for the features and their manifest, or its URL in a store.",
            panel="Input and output",
            short="-o",
        ),
    ] = None
    work_dir: WorkDir = None


@with_options
def features(
    manifest: Annotated[ManifestConfig, _MANIFEST],
    session: Annotated[SessionConfig, _TOWER],
    report: ReportOptions,
    options: FeatureOptions,
    config_file: Path | None,
    errors: Annotated[str | None, ERRORS] = None,
) -> None:
    """Store the vision tower's output for every image of MANIFEST.

    FOLDER gets a file for each image and manifest.jsonl, which is MANIFEST with
    these files in the image column: for `run --image-input-type image_features`,
    with any prompts: rows need none here. What is there already is not computed
    again. Rows whose images cannot be read keep them, and are listed. Exits as
    `validate` does.
    """
    check_stdout_use(report.summary_json, data_on_stdout=errors == "-")
    chosen = checked_feature_folder(options.output)
    check_places(
        [
            *feature_places(chosen),
            *report_places(errors=errors, summary_json=report.summary_json),
            *session_places(session, manifest, config_file),
        ],
        manifest.source,
    )
    if is_url(chosen):
        check_object("output", f"{chosen.rstrip('/')}/{FEATURE_MANIFEST}", _EXAMPLE)
    check_report("--errors", errors)
    check_report("--summary-json", report.summary_json)
    manifest = replace(manifest, column_prefix=None)
    reporting = Reporting(report, data_on_stdout=errors == "-")
    _features(session, manifest, chosen, options.work_dir, reporting, errors)


def _features(
    session: SessionConfig,
    manifest: ManifestConfig,
    output: str,
    work_dir: Path | None,
    report: Reporting,
    errors: str | None,
) -> None:
    from vlmbatch.display.summary import print_feature_summary
    from vlmbatch.jobs.features import write_features
    from vlmbatch.stats import RunStats

    stats = RunStats()
    details = {"model": session.model, "output": output}
    folder, url = feature_destination(output, work_dir)
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: f"{stats.rows_done:,} rows are done; run the command again to resume"),
        report.display(stats),
        local_errors(errors, stats) as file,
        RowErrors(stats, file) as found,
    ):
        written = write_features(session, manifest, folder, stats, found.add, url)
    report.finish(
        stats,
        {**details, "images_computed": written.num_encoded},
        lambda: print_feature_summary(
            stats,
            written.num_encoded,
            found.examples,
            _next_command(session, manifest, output, needs_prompt=written.lacks_prompts),
            log.console(),
        ),
    )


def _next_command(
    session: SessionConfig, manifest: ManifestConfig, output: str, *, needs_prompt: bool
) -> str:
    """The run that answers the manifest that was written."""
    features = f"{output.rstrip('/')}/{FEATURE_MANIFEST}"
    command = ["vlmbatch", "run", features, "-m", session.model]
    command += ["--image-input-type", "image_features", "-o", "answers.parquet"]
    defaults = ManifestConfig("")
    for option in ("prompt", "prompt_column", "image_column", "id_column"):
        if (name := getattr(manifest, option)) != getattr(defaults, option):
            command += [f"--{option.replace('_', '-')}", name]
    if needs_prompt and manifest.prompt is None:
        command += ["--prompt", "Describe the picture."]
    return shlex.join(command)
