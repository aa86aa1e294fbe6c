"""A step that runs out of GPU memory: smaller steps, and an error for the row that fits in none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sample_model import SampleModel, answer, make_rows
from torch import Tensor

from vlmbatch.config import EngineConfig
from vlmbatch.errors import ErrorCode
from vlmbatch.models.vision_language_model import Embedded

NUM_ROWS = 60
LIMIT = 300  # tokens of a step: room for two prompts, and for a decode step of all rows


class Greedy:
    """A model whose steps of more than ``limit`` tokens ask for twice the memory there is."""

    def __init__(self, model: Any, limit: int) -> None:
        self._model = model
        self._limit = limit
        self.refused: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, embedded: Embedded, *args: Any) -> Tensor:
        hidden = embedded.hidden
        if len(hidden) > self._limit:
            self.refused.append(len(hidden))
            total = torch.cuda.get_device_properties(hidden.device).total_memory
            torch.empty(2 * total, dtype=torch.uint8, device=hidden.device)
        out: Tensor = self._model.forward(embedded, *args)
        return out


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleModel:
    return SampleModel.open(make_rows(NUM_ROWS, 8008, tmp_path_factory.mktemp("rows")))


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_the_run_goes_on_in_smaller_steps(sample: SampleModel, cuda_graphs: bool) -> None:
    settings = EngineConfig(
        device="cuda", dtype="float32", attention_backend="triton", cuda_graphs=cuda_graphs
    )
    expected, _ = answer(sample.engine(settings), sample.requests)
    engine = sample.engine(settings)
    model = engine.runner._model = Greedy(engine.runner._model, LIMIT)

    ordinary = sample.requests[7]
    too_long = replace(ordinary, token_ids=ordinary.token_ids + ordinary.token_ids[-1:] * LIMIT)
    requests = [*sample.requests[:20], too_long, *sample.requests[20:]]
    tokens, errors = answer(engine, requests)

    assert list(errors) == [20]
    assert errors[20].code == ErrorCode.ENGINE_ERROR
    assert "OutOfMemoryError" in errors[20].message
    assert tokens[:20] + tokens[21:] == expected
    assert len(model.refused) > 2
    assert answer(engine, sample.requests) == (expected, {})  # as well as before
