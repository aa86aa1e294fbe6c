"""Qwen-VL models on the GPU: float32 answers those of transformers, bfloat16 no further off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answered_tokens import answered_tokens
from qwen_vl_case import ROWS, Case, make_case
from qwen_vl_checkpoints import KINDS
from qwen_vl_ours import Ours

from vlmbatch.config import EngineConfig
from vlmbatch.jobs.run import run
from vlmbatch.stats import RunStats

SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "short steps": {"max_batched_tokens": 40},
    "no prefix cache": {"enable_prefix_caching": False, "max_batched_tokens": 33},
    "torch": {"attention_backend": "torch"},
}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float32_answers_are_those_of_transformers(
    case: Case, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens = answered_tokens(monkeypatch)
    exact = {"device": "cuda", "dtype": "float32", "attention_backend": "triton"}
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=EngineConfig(**{**exact, **settings})), stats)
    assert stats.num_errors == 0, stats.error_examples
    assert [tokens[index] for index in range(len(ROWS))] == case.expected


@pytest.mark.parametrize("backend", ["flash-attn", "triton"])
def test_bfloat16_logits_are_at_most_twice_as_far_off_as_transformers(
    case: Case, backend: str
) -> None:
    """From those of transformers in float32, over all tokens of all rows."""
    exact = case.their_logits("cuda", torch.float32)
    theirs = case.their_logits("cuda", torch.bfloat16)
    ours = Ours.load(case.model, backend, "cuda", torch.bfloat16).logits(case, 10_000)
    off, their_off = (
        torch.cat([(a.float() - b).flatten() for a, b in zip(logits, exact, strict=True)]).norm()
        for logits in (ours, theirs)
    )
    assert off <= 2 * their_off


def test_the_tower_never_waits_for_the_device(case: Case) -> None:
    """The host lays out the next step meanwhile."""
    ours = Ours.load(case.model, "flash-attn", "cuda", torch.bfloat16)
    names = [name for _, shown in ROWS for name in shown]
    images = ours.pixels(case.manifest.parent, names)
    want = ours.model.encode_images(*images)  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ours.model.encode_images(*images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, got, want))
