"""A dense layer with GELU behind it, on a GPU in one product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch_kernels.linear import linear

_HAS_EPILOGUE = hasattr(torch, "_addmm_activation")  # what torch.compile emits; not public


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of ``x @ weight.T + bias`` by its tanh form (Hendrycks and Gimpel 2016).

    ``x``: (..., in_features); ``weight``: (out_features, in_features); ``bias``: (out_features,).
    On a GPU the product is not rounded before the activation.
    """
    if _HAS_EPILOGUE and x.is_cuda:
        rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
        return rows.view(*x.shape[:-1], -1)
    return F.gelu(linear(x, weight, bias), approximate="tanh")
