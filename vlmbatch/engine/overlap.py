"""When prefill beside decode pays: estimates of what either would take by itself."""

from __future__ import annotations

from itertools import islice

from vlmbatch.engine.scheduler import Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.models.config import TextConfig

# What an H100 does in the long run. Only the ratio counts: how to run, not what comes out.
_OPERATIONS_PER_SECOND = 6.9e14
_BYTES_PER_SECOND = 2.9e12
_BEGIN = 3.0  # times a full step of prefill: what there must be to decode
_STAY = 0.5  # the same, to continue: switching drains both lanes
_MIN_FINISHED = 16  # sequences, before their lengths say more than their limits


class OverlapPolicy:
    """Compares the decoding at hand with the prefill that waits.

    Decode steps beside prefill cost little where there are many of them; where answers are short,
    decoding tokens ride along with prefill at no cost, on the whole GPU.
    """

    def __init__(self, text: TextConfig, weight_bytes: int, kv_bytes: int) -> None:
        """``weight_bytes``, ``kv_bytes``: of a number of the weights and of the KV cache."""
        weights = text.num_layer_weights
        kv_numbers = 2 * text.num_layers * text.num_kv_heads * text.head_dim
        self._prefill_token_s = 2 * weights / _OPERATIONS_PER_SECOND
        self._weights_s = weights * weight_bytes / _BYTES_PER_SECOND
        self._kv_token_s = kv_numbers * kv_bytes / _BYTES_PER_SECOND
        self._num_finished = 0
        self._mean_output = 0.0

    def observe(self, sequence: Sequence) -> None:
        """Learn from a finished sequence how long answers are."""
        self._num_finished += 1
        share = 1 / min(self._num_finished, 256)
        self._mean_output += share * (len(sequence.output_token_ids) - self._mean_output)

    def wants_overlap(self, scheduler: Scheduler, overlapping: bool) -> bool:
        """Whether the next steps should run in two lanes; ``overlapping``: they do so now."""
        if scheduler.is_recovering or not scheduler.has_prefill:
            return False
        waiting = sum(
            sequence.num_uncomputed_tokens
            for sequence in islice(scheduler.waiting, scheduler.max_num_seqs)
        )
        full_step = scheduler.max_batched_tokens
        if waiting < full_step and not overlapping:
            return False
        needed = full_step * self._prefill_token_s * (_STAY if overlapping else _BEGIN)
        return self._decode_seconds(scheduler) >= needed

    def _decode_seconds(self, scheduler: Scheduler) -> float:
        """What it would take to bring the running sequences to their ends by themselves.

        A block that several share is read from memory about once. 0 where they are too few for
        steps of their own.
        """
        decoding = [sequence for sequence in scheduler.running if sequence.is_decoding]
        context = scheduler.granule * sum(
            block.size / block.ref_count for sequence in decoding for block in sequence.blocks
        )
        cache_s = context * self._kv_token_s
        if cache_s < self._weights_s:
            return 0.0  # steps would mostly read weights, which ones with prompts in them do anyway
        steps = sum(self._expected_steps(sequence) for sequence in decoding) / len(decoding)
        return steps * (self._weights_s + cache_s)

    def _expected_steps(self, sequence: Sequence) -> float:
        limit = sequence.max_len - sequence.num_tokens
        if self._num_finished < _MIN_FINISHED:
            return limit
        generated = sequence.num_tokens - sequence.num_prompt_tokens
        return min(limit, max(self._mean_output - generated, 1.0))
