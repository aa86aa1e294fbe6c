"""What a GPU is called, and what is told of one that is taken; torch.cuda is made up."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from vlmbatch.engine.gpu import check_usable, gpu_name, memory_use
from vlmbatch.errors import ConfigError

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def taken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GiB others have 70, and this process 4."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4 * 2**30)


@pytest.mark.parametrize(
    ("visible", "device", "name"),
    [
        (None, "cuda", "GPU 0"),
        (None, "cuda:3", "GPU 3"),
        ("5", "cuda", "GPU 5"),
        ("2, GPU-abc", "cuda:1", "GPU GPU-abc"),
        ("", "cuda", "GPU 0"),
    ],
)
def test_names(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, name: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_name(torch.device(device)) == name


def test_whose_memory_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert memory_use(GPU) == (
        "GPU 7 has 80.0 GiB, of which 4.0 GiB are this engine's, 6.0 GiB are free, and 70.0 GiB "
        "belong to other programs and to CUDA"
    )


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_one_that_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*arguments: object, **options: Any) -> None:
        raise error

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(torch, "zeros", refuse)
    cause = str(error).partition("\n")[0]
    with pytest.raises(ConfigError, match=re.escape(f"GPU 7 cannot be used: {cause}. `nvidia")):
        check_usable(GPU)
