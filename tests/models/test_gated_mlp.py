"""The feed-forward layer in all forms that checkpoints have it in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlmbatch.models.layers import ACTIVATIONS, GatedMLP
from vlmbatch.models.parallel import SINGLE_DEVICE


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_it_is_the_formula(act: str, bias: bool) -> None:
    layer = GatedMLP(12, 20, act, bias, SINGLE_DEVICE)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, 12)
    gate, up = layer.gate_up_proj.weight.chunk(2)
    gate_bias, up_bias = (None, None) if not bias else layer.gate_up_proj.bias.chunk(2)
    hidden = ACTIVATIONS[act](F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias)
    want = F.linear(hidden, layer.down_proj.weight, layer.down_proj.bias)
    torch.testing.assert_close(layer(x), want, atol=1e-4, rtol=1e-4)
