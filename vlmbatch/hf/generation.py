"""``generate`` over a batch of rows, each with its own end and its own random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from vlmbatch_kernels.penalties import penalise
from vlmbatch_kernels.sampling import sample_tokens

from vlmbatch.config import SamplingParams
from vlmbatch.engine.early_ends import EarlyEnds
from vlmbatch.engine.logprobs import StepLogprobs
from vlmbatch.engine.penalties import penalty_factors
from vlmbatch.engine.token_masks import TokenMasks
from vlmbatch.hf.batch import collate
from vlmbatch.hf.failures import BatchFailedError
from vlmbatch.hf.library import shown
from vlmbatch.hf.row import RowUnderWay
from vlmbatch.types import Request, TokenLogprob

# What models raise on inputs that they cannot take, running out of memory included.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

T = TypeVar("T")
OnToken = Callable[[RowUnderWay, int, TokenLogprob | None], None]


class BatchGenerator:
    """Answers batches with one model on one device. Not thread-safe.

    ``pad_token_id``: stands before the prompts that are shorter than the longest; none sees it.
    ``image_token_id``: stands for a part of an image, if any does; no penalty counts it.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        dtype: torch.dtype,
        pad_token_id: int,
        image_token_id: int | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._dtype = dtype
        self._pad_token_id = pad_token_id
        self._image_token_id = image_token_id

    def answer(
        self,
        rows: Sequence[RowUnderWay],
        on_token: OnToken,
        given_up: Callable[[], bool],
    ) -> None:
        """Generate until every row has ended, or ``given_up``; each token is handed out at once.

        Raises:
            BatchFailedError: the model cannot take these rows, or not so many of them.
        """
        self._contained(partial(self._generate, rows, on_token, given_up))

    def logits(self, requests: Sequence[Request], num_steps: int) -> list[Tensor]:
        """The logits of each step, at most ``num_steps`` of them, (len(requests), V) each.

        Raises:
            BatchFailedError: the model cannot take these requests.
        """
        config = greedy_config(self._pad_token_id, num_steps)
        config.return_dict_in_generate = config.output_logits = True

        def generate() -> list[Tensor]:
            found = self._model.generate(**self._batch(requests), generation_config=config)
            return list(found.logits)

        return self._contained(generate)

    def _contained(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; what the model raises becomes the batch's failure."""
        try:
            with torch.inference_mode():
                return work()
        except torch.AcceleratorError:
            raise
        except _FAILURES as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            failure = BatchFailedError(shown(error), out_of_memory=out_of_memory)
        # Only here, as the error's frames held the batch's memory.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise failure

    def _generate(
        self, rows: Sequence[RowUnderWay], on_token: OnToken, given_up: Callable[[], bool]
    ) -> None:
        raw = RawScores()
        processors: list[LogitsProcessor] = [raw]
        if any(row.request.sampling.penalises for row in rows):
            processors.append(Penalties(rows, self._image_token_id))
        if any(row.constraint is not None for row in rows):
            forbids = any(row.request.sampling.no_repeat_ngram_size for row in rows)
            processors.append(Shapes(rows, raw if forbids else None))
        if any(row.request.sampling.min_tokens for row in rows):
            processors.append(NoEarlyEnd(rows))
        if any(row.request.sampling.temperature > 0 for row in rows):
            processors.append(Choice(rows))
        watch = Watch(rows, on_token, given_up, raw)
        self._model.generate(
            **self._batch([row.request for row in rows]),
            generation_config=greedy_config(self._pad_token_id, max(row.limit for row in rows)),
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([watch]),
        )

    def _batch(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The model's arguments, on its device."""
        batch = collate(requests, self._pad_token_id)
        return {name: self._place(value) for name, value in batch.items()}

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self._device, dtype)


def greedy_config(pad_token_id: int, max_new_tokens: int | None = None) -> Any:
    """The likeliest token at each step and nothing else, until ``Watch`` sees all rows end."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad_token_id,
        eos_token_id=None,
        use_cache=True,
    )


class Watch(StoppingCriteria):  # type: ignore[misc]
    """Hands on each row's tokens, and tells ``generate`` which rows have ended."""

    def __init__(
        self,
        rows: Sequence[RowUnderWay],
        on_token: OnToken,
        given_up: Callable[[], bool],
        raw: RawScores,
    ) -> None:
        self._rows = rows
        self._on_token = on_token
        self._given_up = given_up
        self._raw = raw
        self._requests = [row.request for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        tokens = input_ids[:, -1]
        launched = StepLogprobs.launch(self._raw.scores, tokens, self._requests)
        failed = self._raw.scores.isnan().any(dim=-1)
        token_ids = tokens.masked_fill(failed, -1).tolist()  # waits for all of it
        logprobs = {} if launched is None else launched.by_row()
        for place, (row, token_id) in enumerate(zip(self._rows, token_ids, strict=True)):
            if not row.ended:
                self._on_token(row, token_id, logprobs.get(place))
        everything = self._given_up()
        ended = [everything or row.ended for row in self._rows]
        return torch.tensor(ended, device=input_ids.device)


class RawScores(LogitsProcessor):  # type: ignore[misc]
    """Keeps a step's logits as the model gives them. Has to be the first."""

    scores: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores = scores
        return scores


class Penalties(LogitsProcessor):  # type: ignore[misc]
    """Each row's own penalties, as our engine has them, over all tokens but those of images."""

    def __init__(self, rows: Sequence[RowUnderWay], image_token_id: int | None) -> None:
        params = [row.request.sampling for row in rows]
        self._prompt_lengths = torch.tensor([row.num_prompt_tokens for row in rows])
        self._factors = penalty_factors(params)
        self._ngram_sizes = [p.no_repeat_ngram_size for p in params]
        self._image_token_id = -1 if image_token_id is None else image_token_id
        self._num_steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        device = scores.device
        num_output = torch.full_like(self._prompt_lengths, self._num_steps)
        lengths = (self._prompt_lengths + num_output).to(device)
        self._num_steps += 1
        from_end = torch.arange(input_ids.shape[1], 0, -1, device=device)
        is_text = (from_end <= lengths[:, None]) & (input_ids != self._image_token_id)
        return penalise(
            scores,
            input_ids.where(is_text, -1),
            num_output.to(device),
            self._factors.to(device),
            self._ngram_sizes,
        )


class Shapes(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row the tokens that its grammar allows; ``raw``: see ``TokenMasks.apply_``."""

    def __init__(self, rows: Sequence[RowUnderWay], raw: RawScores | None) -> None:
        self._rows = rows
        self._raw = raw

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answers = [
            (place, row.constraint, row.token_ids)
            for place, row in enumerate(self._rows)
            if row.constraint is not None and not row.ended
        ]
        masks = TokenMasks.of(answers, scores.device)
        if masks is None:
            return scores
        return masks.apply_(scores.clone(), None if self._raw is None else self._raw.scores)


class NoEarlyEnd(LogitsProcessor):  # type: ignore[misc]
    """Rules out what would end a row before it has as many tokens as asked for."""

    def __init__(self, rows: Sequence[RowUnderWay]) -> None:
        self._rows = rows
        self._num_steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = EarlyEnds.of(
            {
                place: row.stop_token_ids
                for place, row in enumerate(self._rows)
                if self._num_steps < row.request.sampling.min_tokens
            }
        )
        self._num_steps += 1
        return scores if ends is None else ends.rule_out(scores)


class Choice(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row the one token that its parameters choose.

    The random number of a token comes from its row's seed and its position alone, as in our engine:
    a row's answer does not depend on what it is batched with.
    """

    def __init__(self, rows: Sequence[RowUnderWay]) -> None:
        params: list[SamplingParams] = [row.request.sampling for row in rows]
        self._rows = rows
        self._temperature = torch.tensor([p.temperature for p in params])
        self._top_k = torch.tensor([p.top_k for p in params])
        self._top_p = torch.tensor([p.top_p for p in params])
        self._min_p = torch.tensor([p.min_p for p in params])
        self._seeds = torch.tensor([p.seed for p in params])
        self._num_steps = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        positions = [row.num_prompt_tokens + self._num_steps for row in self._rows]
        self._num_steps += 1
        tokens = sample_tokens(
            scores,
            self._temperature,
            self._top_k,
            self._top_p,
            self._seeds,
            torch.tensor(positions),
            self._min_p,
        )
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
