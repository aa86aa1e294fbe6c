"""The layers of Qwen3-VL on batches (N, length, C), in the dtype of what they are given.

Modules are Hugging Face's: of them only parameters and shapes are used.
"""

from __future__ import annotations

from typing import Any

import torch
from qwen_checkpoint import MERGE, ROPE_THETA
from torch import Tensor
from torch.nn import functional


def vision_layer(block: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = block.attn
    qkv = linear(attention.qkv, layer_norm(block.norm1, hidden))
    qkv = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = rotated(qkv[:2], cos, sin)
    heads = functional.scaled_dot_product_attention(query, key, qkv[2], attn_mask=mask)
    hidden = hidden + linear(attention.proj, heads.transpose(1, 2).flatten(2))
    inner = linear(block.mlp.linear_fc1, layer_norm(block.norm2, hidden))
    inner = functional.gelu(inner, approximate="tanh")
    return hidden + linear(block.mlp.linear_fc2, inner)


def text_layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    shape = (-1, attention.head_dim)
    x = rms_norm(layer.input_layernorm, hidden)
    query, key, value = (
        linear(projection, x).unflatten(-1, shape)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query = rotated(rms_norm(attention.q_norm, query).transpose(1, 2), cos, sin)
    key = rotated(rms_norm(attention.k_norm, key).transpose(1, 2), cos, sin)
    groups = attention.num_key_value_groups
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value.transpose(1, 2)))
    heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    hidden = hidden + linear(attention.o_proj, heads.transpose(1, 2).flatten(2))
    x = rms_norm(layer.post_attention_layernorm, hidden)
    inner = functional.silu(linear(mlp.gate_proj, x)) * linear(mlp.up_proj, x)
    return hidden + linear(mlp.down_proj, inner)


def linear(layer: Any, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, layer.weight.to(x.dtype), bias)


def layer_norm(layer: Any, x: Tensor) -> Tensor:
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return functional.layer_norm(x, weight.shape, weight, bias, layer.eps)


def rms_norm(layer: Any, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    return functional.rms_norm(x, weight.shape, weight, layer.variance_epsilon)


def by_token(patches: Tensor) -> Tensor:
    return patches.unflatten(1, (-1, MERGE**2)).flatten(2)


def merge(merger: Any, x: Tensor) -> Tensor:
    return linear(merger.linear_fc2, functional.gelu(linear(merger.linear_fc1, x)))


def frequencies(size: int, device: torch.device) -> Tensor:
    return ROPE_THETA ** -(torch.arange(0, size, 2, device=device) / size)


def rotary(angles: Tensor) -> tuple[Tensor, Tensor]:
    twice = torch.cat((angles, angles), dim=-1)
    return twice.cos(), twice.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
