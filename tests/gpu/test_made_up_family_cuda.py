"""The made-up family on the GPU: images of all shapes and three rows of positions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_case import Case, make_case
from made_up_checkpoint import PACKAGE

from vlmbatch.config import EngineConfig
from vlmbatch.jobs.run import run
from vlmbatch.models.family import FAMILIES
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "short steps": {"max_batched_tokens": 40},
    "no prefix cache": {"enable_prefix_caching": False, "max_batched_tokens": 33},
    "torch": {"attention_backend": "torch"},
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "made_up", PACKAGE)
        yield make_case(tmp_path_factory.mktemp("made-up"))


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}

    def noted(answer: Answer, tokenizer: Tokenizer) -> Result:
        found[answer.row.index] = list(answer.token_ids)
        return to_result(answer, tokenizer)

    monkeypatch.setattr("vlmbatch.stages.sink.to_result", noted)
    return found


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float32_answers_are_those_of_the_dense_model(
    case: Case, settings: dict[str, Any], tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    exact = {"device": "cuda", "dtype": "float32", "attention_backend": "triton"}
    engine = EngineConfig(**{**exact, **settings})
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=engine), stats)
    assert stats.num_errors == 0, stats.error_examples
    assert [tokens[index] for index in range(len(case.expected))] == case.expected


@pytest.mark.parametrize("backend", ["flash-attn", "triton"])
def test_bfloat16_runs_to_the_end(
    case: Case, backend: str, tokens: dict[int, list[int]], tmp_path: Path
) -> None:
    """Ragged attention of flash-attn, and the kernels that ask for tensors without gaps."""
    engine = EngineConfig(device="cuda", dtype="bfloat16", attention_backend=backend)
    stats = RunStats()
    run(case.job(tmp_path / "out.parquet", engine=engine), stats)
    assert stats.num_errors == 0, stats.error_examples
    first = [tokens[index][0] for index in range(len(case.expected))]
    same = sum(ours == theirs[0] for ours, theirs in zip(first, case.expected, strict=True))
    assert same >= len(first) // 2, "the model's weights are random: near ties are common"
