"""A GPU as its user knows it: what it is called, whether it can be had, and who has its memory."""

from __future__ import annotations

import os

import torch

from vlmbatch.errors import ConfigError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_name(device: torch.device) -> str:
    """Its number, or what the environment calls it: in this process it may be the only one."""
    index = device.index or 0  # none: the first, without asking CUDA, which may be what fails
    names = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return f"GPU {names[index] if index < len(names) else index}"


def check_usable(device: torch.device) -> None:
    """See that a GPU lets this process in, before anything is read for it.

    Raises:
        ConfigError: another process has it to itself, or has all of its memory, or it is broken.
    """
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # of CUDA, or of its memory
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{gpu_name(device)} cannot be used: {first}. `nvidia-smi` tells which processes have "
            "it"
        ) from error


def memory_use(device: torch.device) -> str:
    """Whose a GPU's memory is, for people."""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    gib = 2**30
    return (
        f"{gpu_name(device)} has {total / gib:.1f} GiB, of which {own / gib:.1f} GiB are this "
        f"engine's, {free / gib:.1f} GiB are free, and {(total - free - own) / gib:.1f} GiB belong "
        "to other programs and to CUDA"
    )
