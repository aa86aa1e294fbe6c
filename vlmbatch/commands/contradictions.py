"""Options that contradict each other, refused before any work begins."""

from __future__ import annotations

from vlmbatch.config import (
    Destination,
    EngineConfig,
    ManifestConfig,
    OutputOptions,
    PartDestination,
    RunPolicy,
    SamplingParams,
    StdoutDestination,
)
from vlmbatch.errors import UsageError


def check_cluster_input(options: OutputOptions, manifest: str) -> None:
    """Refuse with --ray what is another way to divide a manifest, or is of this machine alone.

    Raises:
        UsageError: names the options.
    """
    if options.ray is None:
        return
    if options.shard is not None:
        raise UsageError(
            f"--ray and --shard {options.shard} contradict each other: Ray gives the parts to "
            "machines, or your scheduler does. Choose one"
        )
    if manifest == "-":
        raise UsageError(
            "--ray needs a manifest that all nodes can read: standard input is this machine's"
        )


def check_cluster_options(ray: str | None, engine: EngineConfig, text_folder: str | None) -> None:
    """Refuse with --ray what is of one machine: how many engines it has, and files of texts.

    Raises:
        UsageError: names the options.
    """
    if ray is None:
        return
    given = "--gpus" if engine.gpus is not None else "--replicas"
    value = engine.gpus if engine.gpus is not None else engine.replicas
    if value is not None:
        raise UsageError(
            f"--ray and {given} {value} contradict each other: every engine gets its GPUs of "
            "the cluster, and Ray says which. Choose one"
        )
    if text_folder is not None:
        raise UsageError(
            f"--write-text {text_folder} and --ray {ray} contradict each other: choose one"
        )


def check_resume_options(destination: Destination, policy: RunPolicy) -> None:
    """Refuse options that contradict each other, or have nothing to resume.

    Raises:
        UsageError: names the options.
    """
    chosen = [
        name
        for name, given in (
            ("--overwrite", policy.overwrite),
            ("--retry-failed", policy.retry_failed),
            ("--incremental", policy.incremental),
        )
        if given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} contradict each other: choose one")
    if isinstance(destination, StdoutDestination) and chosen and not policy.overwrite:
        raise UsageError(f"{chosen[0]} needs an output file: standard output keeps nothing")


def check_sample(destination: Destination, manifest: ManifestConfig, ray: str | None) -> None:
    """Refuse a sample in parts.

    Raises:
        UsageError: names both options.
    """
    if manifest.sample is None:
        return
    parts = f"--shard {destination.part}" if isinstance(destination, PartDestination) else None
    if parts or ray is not None:
        raise UsageError(
            f"--sample {manifest.sample} and {parts or '--ray'} contradict each other: a sample is "
            "answered whole by one task. Choose one"
        )


def check_answers(sampling: SamplingParams, text_folder: str | None) -> None:
    """Refuse several answers to a row where they would be the same, or some of them be left out.

    Raises:
        UsageError: names the options.
    """
    given = f"--n {sampling.n}"
    if sampling.n == 1:
        return
    if sampling.temperature == 0:
        raise UsageError(
            f"{given} gives the same answer {sampling.n} times at --temperature 0: raise it, as in "
            "--temperature 0.7"
        )
    if sampling.logprobs is not None:
        raise UsageError(
            f"{given} and --logprobs {sampling.logprobs} contradict each other: the column has the "
            "tokens of one answer. Choose one"
        )
    if text_folder is not None:
        raise UsageError(
            f"{given} and --write-text {text_folder} contradict each other: a row has one file. "
            "Choose one"
        )


def check_stdout_use(summary_json: str | None, *, data_on_stdout: bool) -> None:
    """Refuse figures and data on one standard output.

    Raises:
        UsageError: both are wanted there.
    """
    if summary_json == "-" and data_on_stdout:
        raise UsageError("--summary-json - would mix with the data on standard output: name a file")
