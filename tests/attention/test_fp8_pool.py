"""Backends over a pool in e4m3, against the definition over the same numbers in float32."""

from __future__ import annotations

import pytest
import torch
from fp8_kv_cases import attend_in_e4m3

from vlmbatch.attention.base import AttentionBackend, AttentionSpec
from vlmbatch.attention.torch_sdpa import TorchSdpaBackend
from vlmbatch.attention.triton_paged import TritonBackend

STEPS = {
    "decodes": [(1, 5), (1, 257), (1, 300), (1, 1)],
    "mixed": [(1, 90), (1, 290), (20, 20), (9, 260), (2, 31)],
}
SPECS = {
    "gqa": AttentionSpec(6, 2, 8, 0.3),
    "window": AttentionSpec(4, 2, 8, 0.3, sliding_window=19),
    "softcap": AttentionSpec(4, 2, 8, 0.9, softcap=1.5),
}


@pytest.mark.parametrize("backend", [TorchSdpaBackend(), TritonBackend()], ids=["torch", "triton"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("lengths", STEPS.values(), ids=STEPS)
def test_matches_reference(
    lengths: list[tuple[int, int]], spec: AttentionSpec, backend: AttentionBackend
) -> None:
    torch.testing.assert_close(*attend_in_e4m3(backend, lengths, spec))
