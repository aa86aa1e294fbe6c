"""``vlmbatch features``: compute the features of all images once, for many runs."""

from __future__ import annotations

import shlex
from pathlib import Path

from vlmbatch import log
from vlmbatch.commands import options
from vlmbatch.commands.checks import (
    check_report_file,
    check_stdout_use,
    checked_feature_folder,
    checked_model,
    image_arguments,
)
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, feature_places, input_places, report_places
from vlmbatch.commands.reporting import Reporting
from vlmbatch.commands.validate import ErrorFile
from vlmbatch.config import (
    FEATURE_MANIFEST,
    IMAGE_TIMEOUT_S,
    EngineConfig,
    ImageLimits,
    ManifestConfig,
    RunConfig,
)

ENGINE = EngineConfig()
LIMITS = ImageLimits()


def features(
    manifest: options.Manifest,
    output: options.FeatureFolder = None,
    limit: options.Limit = None,
    prompt_column: options.PromptColumn = "prompt",
    image_column: options.ImageColumn = "image",
    id_column: options.IdColumn = "id",
    config: options.ConfigFile = None,
    model: options.Model = None,
    revision: options.Revision = None,
    dtype: options.DTypeOption = ENGINE.dtype,
    device: options.DeviceOption = ENGINE.device,
    attention_backend: options.AttentionBackend = ENGINE.attention_backend,
    image_input_shape: options.ImageInputShape = None,
    image_feature_size: options.ImageFeatureSize = None,
    image_processor: options.ImageProcessorOption = None,
    image_processor_revision: options.ImageProcessorRevision = None,
    image_root: options.ImageRoot = None,
    max_image_pixels: options.MaxImagePixels = LIMITS.max_pixels,
    image_workers: options.ImageWorkers = None,
    image_timeout: options.ImageTimeout = IMAGE_TIMEOUT_S,
    errors: options.Errors = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_progress: options.NoProgress = False,
    log_format: options.LogFormat = "text",
    summary_json: options.SummaryJson = None,
    exit_zero: options.ExitZero = False,
) -> None:
    """Store the vision tower's output for every image of MANIFEST.

    FOLDER gets a file for each image and manifest.jsonl, which is MANIFEST with
    these files in the image column: for `run --image-input-type image_features`,
    with any prompts. What is there already is not computed again. Rows whose
    images cannot be read keep them, and are listed. Exits as `validate` does.
    """
    log.configure(verbose=verbose, quiet=quiet, log_format=log_format)
    check_report_file("--errors", errors)
    check_report_file("--summary-json", summary_json)
    check_stdout_use("--summary-json", summary_json, data_on_stdout=errors == "-")
    output = checked_feature_folder(output)
    check_places(
        [
            *feature_places(output),
            *report_places(errors=errors, summary_json=summary_json),
            *input_places(
                manifest,
                config=config,
                image_root=image_root,
                folders={"model": model, "image_processor": image_processor},
            ),
        ],
        manifest,
    )
    run_config = RunConfig(
        model=checked_model(model),
        revision=revision,
        manifest=ManifestConfig(
            manifest, prompt_column, image_column, id_column, limit, column_prefix=None
        ),
        output=output,
        engine=EngineConfig(dtype=dtype, device=device, attention_backend=attention_backend),
        image_arguments=image_arguments(
            "pixel_values",
            None,
            image_input_shape,
            image_feature_size,
            False,
            image_processor,
            image_processor_revision,
        ),
        image_limits=ImageLimits(max_pixels=max_image_pixels, root=image_root),
        image_workers=image_workers,
        image_timeout_s=image_timeout,
    )
    report = Reporting(
        quiet=quiet,
        no_progress=no_progress,
        log_format=log_format,
        summary_json=summary_json,
        exit_zero=exit_zero,
        data_on_stdout=errors == "-",
    )
    _features(run_config, report, errors)


def _features(config: RunConfig, report: Reporting, errors: str | None) -> None:
    from vlmbatch.data.validate import ValidationReport
    from vlmbatch.errors import RowError
    from vlmbatch.features import write_features
    from vlmbatch.stats import RunStats
    from vlmbatch.summary import print_feature_summary
    from vlmbatch.types import Row

    stats = RunStats()
    found = ValidationReport()
    details = {"model": config.model, "output": config.output}
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: f"{stats.rows_done:,} rows are done; run the command again to go on"),
        report.display(stats),
        ErrorFile(errors) as error_file,
    ):

        def list_error(row: Row, error: RowError) -> None:
            found.add(row, error)
            stats.errors[error.code] += 1
            error_file.write(row, error)

        num_encoded = write_features(config, stats, list_error)
    report.finish(
        stats,
        {**details, "images_computed": num_encoded},
        lambda: print_feature_summary(
            stats, num_encoded, found.examples, _next_command(config), log.console()
        ),
    )


def _next_command(config: RunConfig) -> str:
    """The run that answers the manifest that was written."""
    command = ["vlmbatch", "run", str(Path(config.output) / FEATURE_MANIFEST), "-m", config.model]
    command += ["--image-input-type", "image_features", "-o", "answers.parquet"]
    defaults = ManifestConfig("")
    for option in ("prompt_column", "image_column", "id_column"):
        if (name := getattr(config.manifest, option)) != getattr(defaults, option):
            command += [f"--{option.replace('_', '-')}", name]
    return shlex.join(command)
