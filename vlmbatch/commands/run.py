"""``vlmbatch run``: answer every row of a manifest."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vlmbatch import log
from vlmbatch.commands import options
from vlmbatch.commands.checks import (
    DEFAULT_SHARD_ROWS,
    check_report_file,
    check_resume_options,
    check_stdout_use,
    checked_model,
    checked_output,
    image_arguments,
    is_folder,
)
from vlmbatch.commands.exits import early_exits
from vlmbatch.commands.places import check_places, input_places, output_places, report_places
from vlmbatch.commands.reporting import Reporting
from vlmbatch.commands.values import parse_duration, parse_share, parse_size
from vlmbatch.config import (
    IMAGE_TIMEOUT_S,
    EngineConfig,
    ImageLimits,
    ManifestConfig,
    PromptConfig,
    RunConfig,
    SamplingParams,
)

if TYPE_CHECKING:
    from vlmbatch.stats import RunStats

SAMPLING = SamplingParams()
ENGINE = EngineConfig()
LIMITS = ImageLimits()


def run(
    manifest: options.Manifest,
    output: options.Output = None,
    shard_rows: options.ShardRows = None,
    overwrite: options.Overwrite = False,
    retry_failed: options.RetryFailed = False,
    incremental: options.Incremental = False,
    grace: options.Grace = "20s",
    deadline: options.Deadline = None,
    max_error_rate: options.MaxErrorRate = None,
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
    dtype: options.DTypeOption = ENGINE.dtype,
    device: options.DeviceOption = ENGINE.device,
    attention_backend: options.AttentionBackend = ENGINE.attention_backend,
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
    image_workers: options.ImageWorkers = None,
    image_timeout: options.ImageTimeout = IMAGE_TIMEOUT_S,
    chat: options.Chat = False,
    chat_template: options.ChatTemplate = None,
    prompt_template: options.PromptTemplate = None,
    system_prompt: options.SystemPrompt = None,
    max_tokens: options.MaxTokens = SAMPLING.max_tokens,
    temperature: options.Temperature = SAMPLING.temperature,
    top_p: options.TopP = SAMPLING.top_p,
    top_k: options.TopK = SAMPLING.top_k,
    stop: options.Stop = None,
    stop_token_id: options.StopTokenId = None,
    seed: options.Seed = SAMPLING.seed,
    ignore_eos: options.IgnoreEos = False,
    max_num_seqs: options.MaxNumSeqs = ENGINE.max_num_seqs,
    max_batched_tokens: options.MaxBatchedTokens = ENGINE.max_batched_tokens,
    kv_cache_tokens: options.KvCacheTokens = None,
    max_model_len: options.MaxModelLen = None,
    no_prefix_caching: options.NoPrefixCaching = False,
    host_memory: options.HostMemory = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    no_progress: options.NoProgress = False,
    log_format: options.LogFormat = "text",
    summary_json: options.SummaryJson = None,
    exit_zero: options.ExitZero = False,
) -> None:
    """Answer every row of MANIFEST and write the answers in its order.

    A row that cannot be answered becomes an error row, and the run goes on. A
    run that was stopped or killed goes on when the same command is run again.
    Exits 0 when all rows are answered, 1 when some are errors, 2 when the job
    cannot be run as given.
    """
    log.configure(verbose=verbose, quiet=quiet, log_format=log_format)
    output = checked_output(output, manifest, overwrite=overwrite, shard_rows=shard_rows)
    check_resume_options(
        output, overwrite=overwrite, retry_failed=retry_failed, incremental=incremental
    )
    check_report_file("--summary-json", summary_json)
    check_stdout_use("--summary-json", summary_json, data_on_stdout=output == "-")
    shard_rows = shard_rows or (DEFAULT_SHARD_ROWS if is_folder(output) else None)
    check_places(
        [
            *output_places(output, sharded=shard_rows is not None),
            *report_places(summary_json=summary_json),
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
        output=output,
        shard_rows=shard_rows,
        overwrite=overwrite,
        retry_failed=retry_failed,
        incremental=incremental,
        grace_s=parse_duration(grace) or 0.0,
        deadline_s=parse_duration(deadline),
        max_error_rate=parse_share(max_error_rate),
        sampling=SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=tuple(stop or ()),
            stop_token_ids=tuple(stop_token_id or ()),
            ignore_eos=ignore_eos,
        ),
        engine=EngineConfig(
            dtype=dtype,
            device=device,
            attention_backend=attention_backend,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
            kv_cache_tokens=kv_cache_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=not no_prefix_caching,
        ),
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
        host_memory=parse_size(host_memory),
        prompt=PromptConfig(chat, chat_template, prompt_template, system_prompt),
    )
    report = Reporting(
        quiet=quiet,
        no_progress=no_progress,
        log_format=log_format,
        summary_json=summary_json,
        exit_zero=exit_zero,
        data_on_stdout=output == "-",
    )
    _run(run_config, report)


def _run(config: RunConfig, report: Reporting) -> None:
    from vlmbatch.run import run as answer_all
    from vlmbatch.stats import RunStats
    from vlmbatch.stopping import RunStoppedError
    from vlmbatch.summary import print_run_summary

    stats = RunStats()
    details = {"model": config.model, "output": config.output}
    stopped = None
    if config.manifest.source == "-" and sys.stdin is not None and sys.stdin.isatty():
        log.logger.info("reading rows from the terminal: end them with Ctrl-D")
    with (
        report.failures_summarised(stats, details),
        early_exits(lambda: what_is_done(config, stats)),
    ):
        try:
            with report.display(stats):
                answer_all(config, stats)
        except RunStoppedError as error:
            done = what_is_done(config, stats)
            stopped = RunStoppedError(f"{error}. {done[:1].upper()}{done[1:]}", error.exit_status)
    report.finish(
        stats,
        details,
        lambda: print_run_summary(stats, log.console(), config.output, stopped=stopped is not None),
        stopped,
    )


def what_is_done(config: RunConfig, stats: RunStats) -> str:
    """What is kept of a run that has ended early, and how to go on with it."""
    total = "" if stats.rows_total is None else f" of {stats.rows_total:,}"
    finished = stats.rows_finished
    done = f"{finished:,}{total} rows are done" if finished else "no row was answered"
    if config.output == "-":
        return f"{done}; standard output keeps nothing to go on from"
    without = " without --overwrite" if config.overwrite and finished else ""
    return f"{done}; run the same command again{without} to go on"
