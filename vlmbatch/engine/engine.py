"""The continuous-batching engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import EngineConfig
from vlmbatch.engine.batch import build_step_inputs
from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.kv_cache import allocate_kv_cache, pool_tokens
from vlmbatch.engine.model_runner import Model, ModelRunner
from vlmbatch.engine.scheduler import ScheduledChunk, Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.config import ModelConfig
from vlmbatch.types import FinishReason, Request

# What a model raises on inputs it cannot take, running out of memory included.
_STEP_FAILURES = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)

_VISION_BATCH = 32  # images of one tower pass: enough to fill a device, small beside the weights


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """A new token of a sequence; ``finish_reason`` is set on its last one."""

    sequence: Sequence
    token_id: int
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """A sequence that the engine had to give up."""

    sequence: Sequence
    error: RowError


logger = logging.getLogger(__name__)


class Engine:
    """Answers requests with one model on one device.

    It knows token ids and pixels, never text or files. Not thread-safe: one thread adds and steps.
    """

    def __init__(
        self,
        model: Model,
        model_config: ModelConfig,
        config: EngineConfig,
        backend: AttentionBackend,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        text = model_config.text
        self.max_model_len = config.max_model_len or text.max_position_embeddings
        self.kv_cache_tokens = pool_tokens(config, text, self.max_model_len, dtype, device)
        granules = self.kv_cache_tokens // backend.granule
        caches = allocate_kv_cache(
            text, granules * backend.granule, backend.block_size, dtype, device
        )
        self.scheduler = Scheduler(
            BlockPool(granules, backend.block_size // backend.granule),
            granule=backend.granule,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self.runner = ModelRunner(
            model, caches, device, max_cached_images=config.max_num_seqs, vision_batch=_VISION_BATCH
        )
        self._device = device
        self._eos_token_ids = frozenset(model_config.eos_token_ids)
        self._backend = backend

    @property
    def num_unfinished(self) -> int:
        return self.scheduler.num_unfinished

    @property
    def wants_requests(self) -> bool:
        """Whether another request could join the next steps instead of only queueing here."""
        return len(self.scheduler.waiting) < self.scheduler.max_num_seqs

    def add(self, request: Request) -> Sequence:
        """Queue a request; its tokens come out of later calls of ``step``.

        Raises:
            RowError: the prompt leaves no room for an answer in the context or in the pool.
        """
        num_prompt_tokens = len(request.token_ids)
        if num_prompt_tokens >= self.max_model_len:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {num_prompt_tokens} tokens, images included; with the context "
                f"length of {self.max_model_len} at most {self.max_model_len - 1} leave room for "
                "an answer",
            )
        max_len = min(num_prompt_tokens + request.sampling.max_tokens, self.max_model_len)
        if not self.scheduler.fits(max_len):
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"prompt and answer may take {max_len} tokens, the KV cache holds "
                f"{self.kv_cache_tokens}; raise --kv-cache-tokens or lower --max-tokens",
            )
        sequence = Sequence(request, max_len, self._eos_token_ids)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[TokenOutput | SequenceFailure]:
        """Compute one step over all sequences that can take part; their new tokens.

        When the step fails, it yields nothing, and the sequences are tried again in smaller steps;
        one that fails alone is given up.
        """
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        inputs = build_step_inputs(
            chunks, self._backend.block_size, self._backend.granule, self._device
        )
        try:
            token_ids = self.runner.run(inputs)
        except torch.AcceleratorError:
            raise
        except _STEP_FAILURES as error:
            return self._recover(chunks, error)
        outputs: list[TokenOutput | SequenceFailure] = []
        for sequence, token_id in zip(inputs.sampled, token_ids, strict=True):
            if self.scheduler.update(sequence, token_id):
                outputs.append(TokenOutput(sequence, token_id, sequence.finish_reason))
        return outputs

    def _recover(
        self, chunks: list[ScheduledChunk], error: Exception
    ) -> list[TokenOutput | SequenceFailure]:
        """Set the failed step's sequences apart, or end the one that makes steps fail."""
        logger.warning("a step of %d sequences failed: %s", len(chunks), error)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        culprit = self.scheduler.abort_step(chunks)
        if culprit is None:
            return []
        self.scheduler.finish(culprit, None)
        message = f"the engine failed on this row: {type(error).__name__}: {error}"
        return [SequenceFailure(culprit, RowError(ErrorCode.ENGINE_ERROR, message))]

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence early, as on a stop string. Its blocks are free for others at once."""
        self.scheduler.finish(sequence, reason)
