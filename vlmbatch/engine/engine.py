"""The continuous-batching engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice

import torch

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import EngineConfig
from vlmbatch.engine.batch import StepInputs, build_step_inputs
from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.decode_graphs import DecodeGraphs
from vlmbatch.engine.kv_cache import KVCache, pool_granules
from vlmbatch.engine.model_runner import LaunchedStep, Model, ModelRunner
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.engine.scheduler import ScheduledChunk, Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.config import ModelConfig
from vlmbatch.types import FinishReason, Request

# What torch raises on inputs that a model cannot take, running out of memory included.
_STEP_FAILURES = (IndexError, RuntimeError)
_MAX_FAILURES = 64  # sequences given up one after another: then it is not the sequences

# Enough for matrix products to run at full rate, where more would only take memory.
_MAX_NUM_SEQS = {"cpu": 128, "cuda": 256}
_MAX_BATCHED_TOKENS = {"cpu": 2048, "cuda": 8192}
_VISION_BATCH = 32  # images of one tower pass: enough to fill a device, small beside the weights

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
        ahead: bool | None = None,
    ) -> None:
        """``ahead``: prepare a step while the one before is computed; None: on a GPU."""
        text = model_config.text
        self.max_model_len = config.max_model_len or text.max_position_embeddings
        max_num_seqs = config.max_num_seqs or _MAX_NUM_SEQS[device.type]
        granules = pool_granules(
            config.kv_cache_tokens,
            text,
            self.max_model_len,
            max_num_seqs,
            backend.granule,
            dtype,
            device,
        )
        self.kv_cache_tokens = granules * backend.granule
        kv_cache = KVCache(
            text, self.kv_cache_tokens, backend.granule, backend.block_size, dtype, device
        )
        graphs = None
        if device.type == "cuda" and backend.captures_decodes and config.cuda_graphs:
            max_blocks = -(-self.max_model_len // backend.block_size)
            graphs = DecodeGraphs(max_num_seqs, max_blocks, kv_cache.spare_slot, device)
        self._new_scheduler: Callable[[], Scheduler] = lambda: Scheduler(
            BlockPool(granules, backend.block_size // backend.granule),
            granule=backend.granule,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=config.max_batched_tokens or _MAX_BATCHED_TOKENS[device.type],
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self.scheduler = self._new_scheduler()
        self.runner = ModelRunner(
            model,
            kv_cache,
            graphs,
            device,
            max_cached_images=max_num_seqs,
            vision_batch=_VISION_BATCH,
        )
        self.device = device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._under_way: LaunchedStep | None = None
        self._failures = 0  # sequences given up since a step went well
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
                ErrorCode.ENGINE_ERROR,
                f"prompt and answer may take {max_len} tokens, the KV cache holds "
                f"{self.kv_cache_tokens}; raise --kv-cache-tokens or lower --max-tokens",
            )
        sequence = Sequence(request, max_len, self._eos_token_ids)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[TokenOutput | SequenceFailure]:
        """Launch a step over all sequences that can take part; the tokens of the one before.

        On a GPU the host is one step ahead: what it hands out here is of the step launched by the
        call before. When a step fails, it yields nothing, and its sequences are tried again in
        smaller steps; one that fails alone is given up.
        """
        chunks = self.scheduler.schedule()
        launched = None
        if chunks:
            try:
                launched = self.runner.launch(self._inputs(chunks), self._under_way)
            except torch.AcceleratorError:
                raise
            except _STEP_FAILURES as error:
                return self._collect() + self._recover(chunks, error)
        if not self._ahead:
            self._under_way, launched = launched, None
        outputs = self._collect()
        self._under_way = launched
        return outputs

    def _inputs(self, chunks: list[ScheduledChunk]) -> StepInputs:
        inputs = build_step_inputs(
            chunks, self._backend.block_size, self._backend.granule, self.device
        )
        inputs.upcoming_images = (
            image
            for sequence in islice(self.scheduler.waiting, _VISION_BATCH)
            for image in sequence.request.images
        )
        return inputs

    def _collect(self) -> list[TokenOutput | SequenceFailure]:
        """The tokens of the step under way, once it is done."""
        step, self._under_way = self._under_way, None
        if step is None:
            return []
        outputs: list[TokenOutput | SequenceFailure] = []
        for sequence, token_id in zip(step.sequences, step.token_ids(), strict=True):
            if self.scheduler.update(sequence, token_id):
                outputs.append(TokenOutput(sequence, token_id, sequence.finish_reason))
        self._failures = 0
        return outputs

    def _recover(
        self, chunks: list[ScheduledChunk], error: Exception
    ) -> list[TokenOutput | SequenceFailure]:
        """Set the failed step's sequences apart, or end the one that makes steps fail."""
        logger.debug("a step of %d sequences failed", len(chunks), exc_info=error)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        culprit = self.scheduler.abort_step(chunks)
        if culprit is None:
            return []
        self._failures += 1
        if self._failures == _MAX_FAILURES:
            raise error
        self.scheduler.finish(culprit, None)
        message = f"the engine failed on this row: {type(error).__name__}: {error}"
        return [SequenceFailure(culprit, RowError(ErrorCode.ENGINE_ERROR, message))]

    def drop_waiting(self) -> list[Sequence]:
        """Give up the sequences that no step has computed anything of yet."""
        dropped = list(self.scheduler.waiting)
        for sequence in dropped:
            self.scheduler.finish(sequence, None)
        return dropped

    def reset(self) -> None:
        """Give up every sequence and cached prefix: an interrupted step leaves them half done."""
        self.scheduler = self._new_scheduler()
        self._under_way = None

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        """End a sequence early, as on a stop string, or give it up (no reason).

        Its blocks are free for others at once.
        """
        self.scheduler.finish(sequence, reason)
