"""Which form of a kernel runs where."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from vlmbatch_kernels import dispatch


@pytest.mark.parametrize(
    ("is_cuda", "has_triton", "form"),
    [(True, True, "triton"), (True, False, "torch"), (False, True, "torch")],
)
def test_triton_runs_on_a_gpu_where_there_is_triton(
    is_cuda: bool, has_triton: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(x: Any, y: int, z: int = 0) -> tuple[str, int]:
        return "torch", y + z

    module = ModuleType(f"{__name__}_triton")
    module.kernel = lambda x, y, z=0: ("triton", y + z)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(dispatch, "has_triton", lambda: has_triton)
    run = dispatch.triton_on_gpu(kernel)
    assert run(SimpleNamespace(is_cuda=is_cuda), 2, z=3) == (form, 5)


def test_the_cpu_never_loads_triton() -> None:
    code = """
import sys, torch
from vlmbatch_kernels.rms_norm import rms_norm
rms_norm(torch.randn(2, 8), torch.ones(8), 1e-5)
sys.exit("triton" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
