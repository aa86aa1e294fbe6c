"""``vlmbatch validate``: find the rows that a run could not answer, without a GPU or weights."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from vlmbatch import log
from vlmbatch.commands import options
from vlmbatch.commands.checks import (
    check_report_file,
    check_stdout_use,
    checked_model,
    image_arguments,
)
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, input_places, report_places
from vlmbatch.commands.reporting import Reporting
from vlmbatch.config import (
    IMAGE_TIMEOUT_S,
    EngineConfig,
    ImageLimits,
    ManifestConfig,
    PromptConfig,
    RunConfig,
)
from vlmbatch.errors import OutputError, RowError

if TYPE_CHECKING:
    from vlmbatch.types import Row

LIMITS = ImageLimits()


def validate(
    manifest: options.Manifest,
    format: options.Format = "auto",
    limit: options.Limit = None,
    prompt_column: options.PromptColumn = "prompt",
    image_column: options.ImageColumn = "image",
    id_column: options.IdColumn = "id",
    column_prefix: options.ColumnPrefix = "",
    keep_inputs: options.KeepInputs = False,
    config: options.ConfigFile = None,
    model: options.Model = None,
    revision: options.Revision = None,
    tokenizer: options.TokenizerOption = None,
    max_model_len: options.MaxModelLen = None,
    image_input_type: options.ImageInput = "pixel_values",
    image_token_id: options.ImageTokenId = None,
    image_input_shape: options.ImageInputShape = None,
    image_feature_size: options.ImageFeatureSize = None,
    strict_image_tokens: options.StrictImageTokens = False,
    image_processor: options.ImageProcessorOption = None,
    image_processor_revision: options.ImageProcessorRevision = None,
    disable_image_processor: options.DisableImageProcessor = False,
    image_root: options.ImageRoot = None,
    allow_domain: options.AllowDomain = None,
    max_image_pixels: options.MaxImagePixels = LIMITS.max_pixels,
    decode_images: options.DecodeImages = False,
    image_workers: options.ImageWorkers = None,
    image_timeout: options.ImageTimeout = IMAGE_TIMEOUT_S,
    chat: options.Chat = False,
    chat_template: options.ChatTemplate = None,
    prompt_template: options.PromptTemplate = None,
    system_prompt: options.SystemPrompt = None,
    errors: options.Errors = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_progress: options.NoProgress = False,
    log_format: options.LogFormat = "text",
    summary_json: options.SummaryJson = None,
    exit_zero: options.ExitZero = False,
) -> None:
    """Check every row of MANIFEST as `run` would, without a GPU, weights or torch.

    Exits 0 when all rows can be answered, 1 when some cannot, 2 when the job
    cannot be run as given.
    """
    log.configure(verbose=verbose, quiet=quiet, log_format=log_format)
    check_report_file("--errors", errors)
    check_report_file("--summary-json", summary_json)
    check_stdout_use("--summary-json", summary_json, data_on_stdout=errors == "-")
    check_places(
        [
            *report_places(errors=errors, summary_json=summary_json),
            *input_places(
                manifest,
                config=config,
                chat_template=chat_template,
                image_root=image_root,
                folders={
                    "model": model,
                    "tokenizer": tokenizer,
                    "image_processor": image_processor,
                },
            ),
        ],
        manifest,
    )
    run_config = RunConfig(
        model=checked_model(model),
        revision=revision,
        tokenizer=tokenizer,
        manifest=ManifestConfig(
            manifest,
            prompt_column,
            image_column,
            id_column,
            limit,
            format=format,
            column_prefix=column_prefix,
            keep_inputs=keep_inputs,
        ),
        output="-",
        engine=EngineConfig(max_model_len=max_model_len),
        image_arguments=image_arguments(
            image_input_type,
            image_token_id,
            image_input_shape,
            image_feature_size,
            strict_image_tokens,
            image_processor,
            image_processor_revision,
            disable_image_processor,
        ),
        image_limits=ImageLimits(max_pixels=max_image_pixels, root=image_root),
        allowed_domains=tuple(allow_domain or ()),
        image_workers=image_workers,
        image_timeout_s=image_timeout,
        prompt=PromptConfig(chat, chat_template, prompt_template, system_prompt),
    )
    report = Reporting(
        quiet=quiet,
        no_progress=no_progress,
        log_format=log_format,
        summary_json=summary_json,
        exit_zero=exit_zero,
        data_on_stdout=errors == "-",
    )
    _validate(run_config, report, errors, decode_images=decode_images)


def _validate(
    config: RunConfig, report: Reporting, errors: str | None, *, decode_images: bool
) -> None:
    from vlmbatch.data.validate import ValidationReport
    from vlmbatch.run import validate as check_rows
    from vlmbatch.stats import RunStats

    stats = RunStats()
    found = ValidationReport()
    with (
        early_exits(lambda: f"{stats.rows_done:,} rows were checked"),
        report.display(stats),
        ErrorFile(errors) as error_file,
    ):
        for row, error in check_rows(config, stats, decode_images=decode_images):
            stats.engine_started = stats.engine_started or time.monotonic()
            found.add(row, error)
            stats.rows_done += 1
            if error is None:
                stats.images_done += len(row.images)
            else:
                stats.errors[error.code] += 1
                error_file.write(row, error)
        stats.finished = time.monotonic()
    from vlmbatch.summary import print_validation_summary

    details = {"model": config.model, "manifest": config.manifest.source}
    report.finish(
        stats, details, lambda: print_validation_summary(stats, found.examples, log.console())
    )


class ErrorFile:
    """The JSON lines of ``--errors``: to a file, to standard output for ``-``, nowhere for None.

    Raises:
        OutputError: the file cannot be opened or written.
    """

    def __init__(self, destination: str | None) -> None:
        self._destination = destination
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        if self._destination == "-":
            self._file = sys.stdout
        elif self._destination is not None:
            try:  # flushed by lines, so that a full disk is met in write
                self._file = Path(self._destination).open("w", buffering=1, encoding="utf-8")
            except OSError as error:
                raise self._failed(error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is None or self._file is sys.stdout:
            return
        try:
            self._file.close()
        except OSError as error:  # what a failed write left in the buffer fails once more
            raise self._failed(error) from error

    def write(self, row: Row, error: RowError) -> None:
        if self._file is None:
            return
        fields = {
            "row_index": row.index,
            "id": row.id,
            "file": row.file,
            "line": row.line,
            "error_code": error.code,
            "error_message": error.message,
        }
        try:
            self._file.write(json.dumps(fields) + "\n")
        except OSError as failure:
            raise self._failed(failure) from failure

    def _failed(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self._destination}: {error.strerror}")
