"""How often Triton compiles a kernel, and what is told of it. Nothing is launched here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from itertools import product
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton (pip install triton, on Linux)"
)


def specializations(module: ModuleType, kernel: str, launch: Callable[[], object]) -> set[str]:
    """For what kinds of arguments Triton compiles ``kernel`` where ``launch`` launches it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    function = vars(module)[kernel]
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    found = set()

    class Recorder:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **options: found.add(repr(bind(*args, **options)[1:]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, kernel, Recorder())
        launch()
    return found


def compiled_form(name: str) -> ModuleType:
    """A module of kernels as a GPU has it, also where others here interpret it."""
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("patch", [14, 16])
def test_images_of_all_sizes_share_a_kernel(patch: int) -> None:
    """Of a number that is 1, or a multiple of 16, Triton makes another kernel than of others."""
    module = compiled_form("vlmbatch_kernels.image_patches_triton")
    ones = torch.ones(3)

    def launch() -> None:
        for height, width in product((patch, 2 * patch, 8 * patch, 16 * patch), repeat=2):
            pixels = torch.zeros(1, height, width, 3, dtype=torch.uint8)
            module.normalize_patches(pixels, ones, ones, patch, torch.bfloat16)

    assert len(specializations(module, "_normalize_patches", launch)) == 1


def test_compiled_and_found_kernels_are_counted_apart() -> None:
    """Whoever listened before still hears of each. In a process of its own: Triton has one ear."""
    code = """
from types import SimpleNamespace
from triton import knobs
heard = []
knobs.compilation.listener = lambda **what: heard.append(what["cache_hit"])
from vlmbatch_kernels.compilations import COMPILATIONS, make_triton_ready
make_triton_ready()
make_triton_ready()
for hit in (False, True, True):
    times = SimpleNamespace(total=500_000)
    knobs.compilation.listener(
        src=None, metadata={}, metadata_group={}, times=times, cache_hit=hit
    )
assert heard == [False, True, True], heard
assert (COMPILATIONS.compiled, COMPILATIONS.loaded, COMPILATIONS.seconds) == (1, 2, 1.5)
from triton.runtime.cache import triton_key
assert triton_key.cache_info().misses == 1, "the digest is made once"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
