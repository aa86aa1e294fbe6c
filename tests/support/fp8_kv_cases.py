"""Keys and values in e4m3: checks of the kernels that write and read them, on a GPU and in Triton's
interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from kernel_cases import CASES, Make, _fresh_memory_is_nan, _rotary, triton_form
from paged_batch import make_step, on_device
from reference_attention import reference_paged
from shared_cases import SHARED_CASES
from torch import Tensor
from vlmbatch_kernels.paged_heads import read_heads, write_heads
from vlmbatch_kernels.qkv_linear import project_qkv
from vlmbatch_kernels.quantized_rows import E4M3, E4M3_MAX
from vlmbatch_kernels.rotary import rotary_and_cache
from vlmbatch_kernels.shared_decode import shared_decode

from vlmbatch.attention.base import AttentionBackend, AttentionSpec, LayerKVCache

Twin = Callable[..., Tensor]

# name: twin, inputs in float32
READS: dict[str, tuple[Twin, Make]] = {
    **{name: (twin, make) for name, (twin, make, _) in CASES.items() if name.startswith("paged_")},
    **{f"shared_decode-{name}": (shared_decode, make) for name, make in SHARED_CASES.items()},
}
ROTARY = {
    "mha-128": _rotary(13, 32, 32, 128),
    "gqa-128": _rotary(13, 28, 4, 128, strided=True),
    "mqa-24": _rotary(7, 3, 1, 24, strided=True),
    "norms-24": _rotary(7, 6, 2, 24, norms=True),
}


def random_scales(kv_heads: int, generator: torch.Generator | None = None) -> Tensor:
    """(2, K), all apart, so that one in another's place shows."""
    exponents = torch.randperm(max(2 * kv_heads, 16), generator=generator) % 16 - 12
    return 2.0 ** exponents[: 2 * kv_heads].float().view(2, kv_heads)


def quantized(heads: Tensor, scales: Tensor) -> Tensor:
    """(..., K, D) in e4m3 over ``scales`` (K,), by torch's own conversion."""
    return (heads / scales[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def check_read(
    name: str, dtype: torch.dtype, device: str, factor: float = 1.0, times: float = 2.0
) -> None:
    """At most ``times`` as far from float32 as torch's form is, over the same numbers in ``dtype``.

    ``factor``: of the queries, whose products with keys stay as large.
    """
    twin, make = READS[name]
    generator = torch.Generator()
    seed = generator.seed()
    query, keys, values, *rest = make(generator)
    scales = random_scales(keys.shape[1], generator)
    caches = [quantized(*each) for each in zip((keys, values), scales, strict=True)]
    dense = [read_heads(*each, torch.float32) for each in zip(caches, scales, strict=True)]
    query = (query * factor).to(dtype)
    rest[-1] = replace(rest[-1], scale=rest[-1].scale / factor)
    exact = twin(query.float(), *dense, *rest)
    plain = twin(query, *(each.to(dtype) for each in dense), *rest)
    placed = [each.to(device) if isinstance(each, Tensor) else each for each in rest]
    with _fresh_memory_is_nan():
        got = triton_form(twin)(
            query.to(device), *(each.to(device) for each in caches), *placed, scales.to(device)
        ).cpu()
    assert got.dtype == dtype and got.shape == exact.shape
    ours_off, theirs_off = ((each.float() - exact).norm() for each in (got, plain))
    assert ours_off <= times * theirs_off, f"{ours_off} against {theirs_off}, seed {seed}"


def attend_in_e4m3(
    backend: AttentionBackend,
    lengths: list[tuple[int, int]],
    spec: AttentionSpec,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """What ``backend`` computes of a step in ``dtype``, and the definition in float32."""
    sizes = backend.block_size, backend.granule
    generator = torch.Generator()
    generator.seed()
    step = make_step(lengths, spec, *sizes, generator=generator)
    step.query = step.query.to(dtype)
    # Torch's masks what is behind a page's end, where no NaN may be; ours never use it.
    slack = torch.full((2, backend.block_size, *step.pool.shape[2:]), torch.nan)
    pool = step.pool if backend.name == "torch" else torch.cat([step.pool, slack], 1)
    scales = random_scales(spec.num_kv_heads)
    keys, values = (quantized(*each) for each in zip(pool, scales, strict=True))
    slots = step.metadata.slot_mapping
    write_heads(keys, slots, step.key, scales[0])
    write_heads(values, slots, step.value, scales[1])
    dense = LayerKVCache(
        read_heads(keys, scales[0], torch.float32), read_heads(values, scales[1], torch.float32)
    )
    written = dense.key[slots], dense.value[slots]
    want = reference_paged(step.query.float(), *written, dense, step.metadata, spec, *sizes)
    cache = LayerKVCache(keys.to(device), values.to(device), scales.to(device))
    metadata = on_device(step.metadata, device)
    return backend.attend(step.query.to(device), cache, metadata, spec).cpu(), want


def check_rotary(name: str, dtype: torch.dtype, device: str, stored: torch.dtype) -> None:
    generator = torch.Generator()
    generator.seed()
    inputs = ROTARY[name](generator)
    _check_written(rotary_and_cache, triton_form(rotary_and_cache), inputs, dtype, device, stored)


def check_project_qkv(
    sizes: tuple[int, int, int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    stored: torch.dtype,
    bias: bool,
    norms: bool = False,
    **tiles: Any,
) -> None:
    """The kernel itself. ``sizes``: rows, in_features, query heads, key-value heads."""
    from vlmbatch_kernels.qkv_linear_triton import fused

    rows, depth, heads, kv_heads = sizes
    columns = (heads + 2 * kv_heads) * head_dim
    _, *rest = _rotary(rows, heads, kv_heads, head_dim, norms=norms)(torch.Generator())
    inputs = (
        torch.randn(rows, depth),
        torch.randn(columns, depth) / 8,
        torch.randn(columns) if bias else None,
        *rest,
    )
    _check_written(project_qkv, partial(fused, **tiles), inputs, dtype, device, stored)


def _check_written(
    twin: Twin,
    form: Twin,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    device: str,
    stored: torch.dtype,
) -> None:
    """Queries as without scales; keys and values rounded to e4m3, and nothing beside them.

    ``stored``: what the kernel rounds to; where it is wider than e4m3, little else is lost.
    """
    first = next(i for i, each in enumerate(inputs) if getattr(each, "dtype", None) == torch.int64)
    slots, kv_heads = inputs[first], inputs[first - 1].shape[1]
    scales = random_scales(kv_heads)
    wide = [_rounded(each, dtype, torch.float32) for each in inputs]
    plain = [_rounded(each, dtype) for each in inputs]
    exact, want = twin(*wide), twin(*plain)
    empty = torch.full_like(inputs[first - 1], 1.0).to(stored)
    ours = [_on(each, device) for each in plain]
    ours[first - 2], ours[first - 1] = (empty.clone().to(device) for _ in range(2))
    with _fresh_memory_is_nan():
        got = form(*ours, scales=scales.to(device)).cpu()
    assert got.dtype == dtype and got.shape == want.shape
    assert (got.float() - exact).norm() <= 2 * (want.float() - exact).norm()
    untouched = torch.ones(len(empty), dtype=torch.bool)
    untouched[slots] = False
    for cache, of_twin, own in zip(
        ours[first - 2 : first], wide[first - 2 :], scales, strict=False
    ):
        assert (cache.cpu().float()[untouched] == 1.0).all()
        heads = of_twin[slots]
        limit = own[:, None] * E4M3_MAX
        read = read_heads(cache.cpu()[slots], own, torch.float32)
        # Half a step of three bits, or of e4m3's least number, and a few last bits before it: of
        # the head's largest, from which the rotation may have made a small one.
        allowed = torch.maximum(heads.abs() * 2**-4, own[:, None] * 2**-10)
        allowed += 4 * torch.finfo(dtype).eps * heads.abs().amax(-1, keepdim=True)
        assert ((read - heads.clamp(-limit, limit)).abs() <= allowed).all()
        assert read.abs().max() > 0


def _rounded(value: Any, *dtypes: torch.dtype) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    for dtype in dtypes:
        value = value.to(dtype)
    return value.clone()


def _on(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
