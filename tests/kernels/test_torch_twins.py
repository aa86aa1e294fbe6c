"""The pure-torch kernels against transformers, the definition, or the formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from paged_batch import make_pool, make_step
from reference_attention import reference_paged
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from vlmbatch_kernels.activation import quick_gelu, silu_and_mul
from vlmbatch_kernels.embedding import embed_with_features
from vlmbatch_kernels.gated_linear import silu_gated_linear
from vlmbatch_kernels.granules import copy_granules
from vlmbatch_kernels.image_patches import normalize_patches, patch_row_size
from vlmbatch_kernels.layer_norm import layer_norm_residual
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.paged_attention import PageLayout, Scores, paged_attention
from vlmbatch_kernels.paged_decode import paged_decode
from vlmbatch_kernels.rms_norm import rms_norm, rms_norm_residual
from vlmbatch_kernels.rotary import apply_rotary, rotary_and_cache, rotary_tables

from vlmbatch.attention.base import AttentionSpec


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_llamas(dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 7, 113).to(dtype) * 3
    reference = LlamaRMSNorm(113, eps=1e-3).to(dtype)
    torch.nn.init.normal_(reference.weight)
    assert torch.equal(rms_norm(x, reference.weight, 1e-3), reference(x))
    normed, total = rms_norm_residual(x, residual, reference.weight, 1e-3)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, reference(residual + x))


def test_rms_norm_leaves_its_inputs() -> None:
    x, residual = torch.randn(2, 5, 16)
    before = x.clone(), residual.clone()
    rms_norm_residual(x, residual, torch.full((16,), 2.0), 1e-6)
    rms_norm(x, torch.full((16,), 2.0), 1e-6)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_rotary_is_llamas() -> None:
    inv_freq = 1 / 10_000 ** (torch.arange(0, 24, 2) / 24)
    cos, sin = rotary_tables(inv_freq, 300, torch.float32)
    positions = torch.tensor([0, 7, 299, 7])
    heads = torch.randn(4, 5, 24)
    angles = (positions[:, None] * inv_freq).repeat(1, 2)
    want, _ = apply_rotary_pos_emb(heads, heads, angles.cos(), angles.sin(), unsqueeze_dim=1)
    got = apply_rotary(heads, cos[positions, None], sin[positions, None])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_rotary_and_cache_writes_rotated_keys() -> None:
    qkv = torch.randn(3, 4 + 2 * 2, 8)
    cos, sin = (torch.randn(3, 1, 8) for _ in range(2))
    key_cache, value_cache = torch.zeros(2, 20, 2, 8)
    slots = torch.tensor([11, 0, 5])
    query = rotary_and_cache(qkv, cos, sin, key_cache, value_cache, slots)
    assert torch.equal(query, apply_rotary(qkv[:, :4], cos, sin))
    assert torch.equal(key_cache[slots], apply_rotary(qkv[:, 4:6], cos, sin))
    assert torch.equal(value_cache[slots], qkv[:, 6:])
    untouched = [slot for slot in range(20) if slot not in slots]
    assert not key_cache[untouched].any()


def test_silu_and_mul() -> None:
    x = torch.randn(7, 2 * 19)
    gate, up = x.double()[:, :19], x.double()[:, 19:]
    want = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(silu_and_mul(x), want.float())


def test_silu_gated_linear() -> None:
    x, weight = torch.randn(9, 12, dtype=torch.float64), torch.randn(14, 12, dtype=torch.float64)
    gate, up = x @ weight[:7].T, x @ weight[7:].T
    got = silu_gated_linear(x.float(), weight.float())
    torch.testing.assert_close(got, (gate * gate.sigmoid() * up).float())


def test_quick_gelu() -> None:
    x = torch.randn(3, 7, 19)
    wide = x.double()
    torch.testing.assert_close(quick_gelu(x), (wide / (1 + torch.exp(-1.702 * wide))).float())


def test_layer_norm_residual() -> None:
    x, residual = torch.randn(2, 3, 5, 16) * 3
    weight, bias = torch.randn(2, 16)
    before = residual.clone()
    normed, total = layer_norm_residual(x, residual, weight, bias, 1e-3)
    assert torch.equal(total, x + residual)
    assert torch.equal(residual, before)
    wide = total.double()
    centred = wide - wide.mean(-1, keepdim=True)
    want = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight + bias
    torch.testing.assert_close(normed, want.float())


@pytest.mark.parametrize("patch_size", [2, 3, 5])
def test_patches_of_an_image_are_what_a_convolution_sees(patch_size: int) -> None:
    pixels = torch.randint(256, (2, 11, 15, 3), dtype=torch.uint8)
    scale, bias = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 0.0, 2.0])
    got = normalize_patches(pixels, scale, bias, patch_size, torch.float32)
    want = (pixels.double() * scale + bias).permute(0, 3, 1, 2)
    want = F.unfold(want, patch_size, stride=patch_size).transpose(1, 2)
    want = want.unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
    used = 3 * patch_size**2
    torch.testing.assert_close(got[..., :used], want.float())
    assert got.shape[-1] == patch_row_size(patch_size)
    assert not got[..., used:].any()
    half = normalize_patches(pixels, scale, bias, patch_size, torch.bfloat16)
    assert torch.equal(half, got.bfloat16())


def test_features_stand_for_their_tokens() -> None:
    table, features = torch.randn(9, 4), torch.randn(3, 4)
    ids = torch.tensor([8, 8, 0, 8, 5])
    out = embed_with_features(ids, table, features, torch.tensor([2, -1, -1, 0, -1]))
    assert torch.equal(out, torch.stack([features[2], table[8], table[0], features[0], table[5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (31, 24), (32, 24), (113, 24), (3, 17, 24), (0, 24)])
def test_linear(shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(40, 24).to(dtype)
    bias = torch.randn(40).to(dtype) if with_bias else None
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))


def test_linear_takes_strided_input() -> None:
    weight = torch.randn(40, 24)
    for x in (torch.randn(4, 50, 24)[:, 1:], torch.randn(64, 48)[:, ::2], torch.randn(24, 64).T):
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


PAGED_SPECS = {
    "mha": AttentionSpec(3, 3, 8, 0.3),
    "gqa": AttentionSpec(6, 2, 24, 0.3),
    "window": AttentionSpec(4, 2, 8, 0.3, sliding_window=19),
    "window-1": AttentionSpec(4, 1, 8, 0.3, sliding_window=1),
    "softcap": AttentionSpec(4, 2, 8, 0.9, softcap=1.5),
}


@pytest.mark.parametrize("layout", [PageLayout(16, 16), PageLayout(64, 16)], ids=str)
@pytest.mark.parametrize("spec", PAGED_SPECS.values(), ids=PAGED_SPECS)
@pytest.mark.parametrize("decodes", [False, True], ids=["chunks", "decodes"])
def test_paged_attention(decodes: bool, spec: AttentionSpec, layout: PageLayout) -> None:
    lengths = [(7, 90), (33, 33), (1, 5), (64, 113)]
    if decodes:
        lengths = [(1, total) for _, total in lengths]
    sizes = layout.page_size, layout.granule
    step = make_step(lengths, spec, *sizes, generator=torch.Generator())
    pool, metadata = make_pool(step, spec), step.metadata
    want = reference_paged(step.query, step.key, step.value, pool, metadata, spec, *sizes)
    scores = Scores(spec.scale, spec.sliding_window or 0, spec.softcap or 0.0)
    tables = pool.key, pool.value, metadata.block_table
    if decodes:
        got = paged_decode(step.query, *tables, metadata.seqlens_k, layout, scores)
    else:
        starts = metadata.cu_seqlens_q, metadata.seqlens_k, metadata.max_seqlen_q
        got = paged_attention(step.query, *tables, *starts, layout, scores)
    torch.testing.assert_close(got, want)


def test_copy_granules() -> None:
    pool = torch.randn(3, 10, 5)
    before = pool.clone()
    copy_granules(pool, torch.tensor([7, 0, 3]), torch.tensor([2, 9, 1]))
    assert torch.equal(pool[:, [2, 9, 1]], before[:, [7, 0, 3]])
    untouched = [granule for granule in range(10) if granule not in (2, 9, 1)]
    assert torch.equal(pool[:, untouched], before[:, untouched])
