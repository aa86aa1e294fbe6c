"""Chooses between the two forms of a kernel: Triton on a GPU, torch everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def triton_on_gpu(twin: Callable[P, R]) -> Callable[P, R]:
    """Let a function in torch run its Triton form where its first argument is on a GPU.

    The Triton form has the same name, in the module named like the twin's with ``_triton`` behind
    it. That is imported when first called, so the CPU needs no triton. The twin itself stays
    within reach as ``__wrapped__``.
    """

    @cache
    def launcher() -> Callable[P, R]:
        module = import_module(f"{twin.__module__}_triton")
        form: Callable[P, R] = getattr(module, twin.__name__)
        return form

    @wraps(twin)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if first.is_cuda and has_triton():
            return launcher()(*args, **kwargs)
        return twin(*args, **kwargs)

    return run
