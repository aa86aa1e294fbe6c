"""Which part of a manifest a task answers: as ``--shard`` says, or as its scheduler does.

SLURM sets ``SLURM_ARRAY_TASK_ID``, ``_COUNT``, ``_MIN`` and ``_MAX`` in the tasks of an array.
Kubernetes sets ``JOB_COMPLETION_INDEX`` in the pods of an Indexed Job, and nothing that tells of
how many: that has to be said in the pod's template.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlmbatch.config import Part
from vlmbatch.config.part import parse_part
from vlmbatch.errors import ConfigError, UsageError

COMPLETIONS = "JOB_COMPLETIONS"  # not of Kubernetes

_INDEX = "JOB_COMPLETION_INDEX"
_SLURM = "SLURM_ARRAY_TASK_"


def chosen_part(shard: str, environment: Mapping[str, str]) -> Part:
    """The part of ``--shard I/N``, or with ``auto`` the one that the environment tells.

    Raises:
        UsageError: there is no such part, or a variable is missing or is no number.
    """
    if shard.strip() != "auto":
        try:
            return parse_part(shard)
        except ConfigError as error:
            raise UsageError(f"--shard {shard}: {error}") from error
    in_slurm, in_kubernetes = f"{_SLURM}ID" in environment, _INDEX in environment
    if in_slurm and in_kubernetes:
        raise UsageError(
            f"--shard auto: both {_SLURM}ID and {_INDEX} are set: say which part with --shard I/N"
        )
    if in_slurm:
        number, count, source = _slurm_task(environment)
    elif in_kubernetes:
        number, count, source = _kubernetes_task(environment)
    else:
        raise UsageError(
            f"--shard auto: neither {_SLURM}ID (of a SLURM array) nor {_INDEX} (of a Kubernetes "
            "Indexed Job) is set: run in one of these, or say which part with --shard I/N"
        )
    try:
        return Part(number, count)
    except ConfigError as error:
        raise UsageError(f"--shard auto: {source}: {error}") from error


def _slurm_task(environment: Mapping[str, str]) -> tuple[int, int, str]:
    names = [f"{_SLURM}{name}" for name in ("ID", "COUNT", "MIN", "MAX")]
    task, count, low, high = (_number(environment, name) for name in names)
    source = ", ".join(f"{name}={environment[name]}" for name in names)
    # What is left of an array, as of --array=3,7, would be taken for all of one.
    steps = count - 1
    step = 1 if steps == 0 else (high - low) // steps
    if steps * step != high - low or step < 1 or (task - low) % step:
        raise UsageError(
            f"--shard auto: the array's tasks do not follow each other at equal distances "
            f"({source}): submit a range, such as --array=0-15, or say which part with --shard I/N"
        )
    return (task - low) // step, count, source


def _kubernetes_task(environment: Mapping[str, str]) -> tuple[int, int, str]:
    number = _number(environment, _INDEX)
    if COMPLETIONS not in environment:
        raise UsageError(
            f"--shard auto: {_INDEX} is {number}, but {COMPLETIONS} is not set. Kubernetes tells a "
            f"pod its number, and not of how many: set {COMPLETIONS} to the Job's completions in "
            f'the pod\'s template, or give --shard "$({_INDEX})/N" there'
        )
    count = _number(environment, COMPLETIONS)
    return number, count, f"{_INDEX}={number}, {COMPLETIONS}={count}"


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise UsageError(
            f"--shard auto: {_SLURM}ID is set, but {name} is not: say which part with --shard I/N"
        )
    if not text.isascii() or not text.isdigit():
        raise UsageError(f'--shard auto: {name} must be a whole number, got "{text}"')
    return int(text)
