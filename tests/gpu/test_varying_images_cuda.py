"""Families whose images vary, on the GPU: float32 answers as transformers', bfloat16 as near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llava_next_case
import llava_next_checkpoints
import llava_next_ours
import pytest
import qwen_vl_case
import qwen_vl_checkpoints
import qwen_vl_ours
import torch
from answered_tokens import answered_tokens
from family_ours import FamilyOurs

from vlmbatch.config import EngineConfig
from vlmbatch.jobs.run import run
from vlmbatch.stats import RunStats

KINDS: dict[str, tuple[Any, type[FamilyOurs]]] = {
    **dict.fromkeys(qwen_vl_checkpoints.KINDS, (qwen_vl_case, qwen_vl_ours.Ours)),
    **dict.fromkeys(llava_next_checkpoints.KINDS, (llava_next_case, llava_next_ours.Ours)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "short steps": {"max_batched_tokens": 40},
    "no prefix cache": {"enable_prefix_caching": False, "max_batched_tokens": 33},
    "torch": {"attention_backend": "torch"},
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return KINDS[kind][0].make_case(kind, tmp_path_factory.mktemp(kind))


def load(kind: str, case: Any, backend: str) -> FamilyOurs:
    return KINDS[kind][1].load(case.model, backend, "cuda", torch.bfloat16)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float32_answers_are_those_of_transformers(
    case: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens = answered_tokens(monkeypatch)
    exact = {"device": "cuda", "dtype": "float32", "attention_backend": "triton"}
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=EngineConfig(**{**exact, **settings})), stats)
    assert stats.num_errors == 0, stats.error_examples
    assert [tokens[index] for index in range(len(case.expected))] == case.expected


@pytest.mark.parametrize("backend", ["flash-attn", "triton"])
def test_bfloat16_logits_are_at_most_twice_as_far_off_as_transformers(
    kind: str, case: Any, backend: str
) -> None:
    """From those of transformers in float32, over all tokens of all rows."""
    exact = case.their_logits("cuda", torch.float32)
    theirs = case.their_logits("cuda", torch.bfloat16)
    ours = load(kind, case, backend).logits(case.manifest.parent, 10_000)
    off, their_off = (
        torch.cat([(a.float() - b).flatten() for a, b in zip(logits, exact, strict=True)]).norm()
        for logits in (ours, theirs)
    )
    assert off <= 2 * their_off


@pytest.mark.parametrize("kind", qwen_vl_checkpoints.KINDS, indirect=True)
def test_qwens_tower_never_waits_for_the_device(kind: str, case: Any) -> None:
    """The host lays out the next step meanwhile."""
    ours = load(kind, case, "flash-attn")
    names = [name for _, shown in ours.rows for name in shown]
    images = ours.pixels(case.manifest.parent, names)
    want = ours.model.encode_images(*images)  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = ours.model.encode_images(*images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, got, want))
