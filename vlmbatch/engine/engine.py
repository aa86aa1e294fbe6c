"""The continuous-batching engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

import torch
from vlmbatch_kernels.compilations import COMPILATIONS

from vlmbatch.engine.batch import StepInputs
from vlmbatch.engine.decode_graphs import DecodeGraphs
from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.model_runner import LaunchedStep, ModelRunner, ScoredStep
from vlmbatch.engine.outputs import NOT_FINITE, EngineStatus, SequenceFailure, TokenOutput
from vlmbatch.engine.scheduler import Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.engine.token_masks import TokenMasks
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.start_times import EngineStart
from vlmbatch.types import FinishReason, Request

# What torch raises on inputs that a model cannot take, running out of memory included.
_STEP_FAILURES = (IndexError, RuntimeError)
_MAX_FAILURES = 64  # sequences given up one after another: then it is not the sequences

_UPCOMING = 32  # waiting sequences whose images may fill a pass of the tower up

Outputs = list[TokenOutput | SequenceFailure]

logger = logging.getLogger(__name__)


class Engine:
    """Answers requests with one model on one device.

    It knows token ids and pixels, never text or files. Not thread-safe: one thread adds and steps.
    """

    def __init__(
        self,
        runner: ModelRunner,
        make_scheduler: Callable[[], Scheduler],
        lay_out: Callable[[list[ScheduledChunk]], StepInputs],
        graphs: DecodeGraphs | None,
        limits: Limits,
        *,
        eos_token_ids: frozenset[int],
        device: torch.device,
        ahead: bool,
        recovers: bool = True,
        grammars: Grammars | None = None,
    ) -> None:
        """The parts come from ``assembly.make_engine``.

        ``make_scheduler`` gives one whose pool is as large as the runner's KV cache. ``graphs``: of
        decode steps, where the device has any. ``ahead``: launch a step before the results of the
        one before are in. ``recovers``: go on when a step fails; ranks that share a step cannot, as
        it may fail on one of them alone. ``grammars``: for requests that have one; None on ranks
        that sample nothing.
        """
        self.runner = runner
        self._make_scheduler = make_scheduler
        self.scheduler = make_scheduler()
        self._lay_out = lay_out
        self._graphs = graphs
        self._under_way: deque[LaunchedStep] = deque()
        self._limits = limits
        self._eos_token_ids = eos_token_ids
        self.device = device
        self._ahead = ahead
        self._recovers = recovers
        self._grammars = grammars
        self._failures = 0  # sequences given up since a step went well
        self.load_seconds: dict[str, float] = {}  # by stage
        # Told of the sequences of each step before it is launched: what they were, if it kills us.
        self.on_launch: Callable[[list[Sequence]], None] | None = None

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._limits.max_model_len

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.scheduler.pool.num_granules * self.scheduler.granule

    @property
    def status(self) -> EngineStatus:
        """How much there is to do, and how full the KV cache is. Between two steps."""
        scheduler = self.scheduler
        waiting = len(scheduler.waiting)
        used = scheduler.pool.num_granules - scheduler.pool.num_available
        return EngineStatus(
            running=scheduler.num_unfinished - waiting,
            waiting=waiting,
            kv_used_tokens=used * scheduler.granule,
            kv_total_tokens=self.kv_cache_tokens,
            preemptions=scheduler.num_preemptions,
            start=self._start(),
        )

    def _start(self) -> EngineStart:
        graphs = self._graphs
        return EngineStart(
            self.load_seconds,
            0 if graphs is None else graphs.num_captured,
            0.0 if graphs is None else graphs.capture_seconds,
            COMPILATIONS.compiled,
            COMPILATIONS.loaded,
            COMPILATIONS.seconds,
        )

    @property
    def num_unfinished(self) -> int:
        return self.scheduler.num_unfinished

    @property
    def wants_requests(self) -> bool:
        """Whether another request could join the next steps instead of only queueing here."""
        return len(self.scheduler.waiting) < self.scheduler.max_num_seqs

    @property
    def fills_step(self) -> bool:
        """Whether the requests that wait have as many tokens as a step computes."""
        waiting = sum(sequence.num_uncomputed_tokens for sequence in self.scheduler.waiting)
        return waiting >= self.scheduler.max_batched_tokens

    def add(self, request: Request) -> Sequence:
        """Queue a request; its tokens come out of later calls of ``step``.

        Raises:
            RowError: the prompt leaves no room for an answer in the context or in the pool, or a
                grammar cannot end.
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
        if (grammar := request.sampling.grammar) is not None and self._grammars is not None:
            sequence.constraint = self._grammars.constraint(grammar)
        self.scheduler.add(sequence)
        return sequence

    def expect_no_more(self) -> None:
        """All requests are here: those with the longest answers to come go first from now on.

        None of these is then left to run alone at the end.
        """
        self.scheduler.sort_waiting()

    def step(self) -> Outputs:
        """Launch a step over all sequences that can take part; the tokens of the one before.

        On a GPU the host is one step ahead: what it hands out here is of the step launched by the
        call before. When a step fails, it yields nothing, and its sequences are tried again in
        smaller steps; one that fails alone is given up.
        """
        outputs: Outputs = []
        chunks = self.scheduler.schedule()
        if chunks and (failure := self._launch(chunks, outputs)):
            return outputs + self._recover(chunks, failure)
        while len(self._under_way) > (1 if self._ahead and chunks else 0):
            outputs += self._collect()
        return outputs

    def _launch(self, chunks: list[ScheduledChunk], outputs: Outputs) -> Exception | None:
        """Launch a step; returns what it failed with.

        While the device computes its logits, the host waits for the tokens that its grammars ask
        for, which go to ``outputs`` with the others of their step, and computes masks.
        """
        before = self._under_way[-1] if self._under_way else None
        if self.on_launch is not None:
            self.on_launch([chunk.sequence for chunk in chunks])
        try:
            scored = self.runner.score(self._inputs(chunks), before, self._graphs)
            while any(map(_awaits_token, scored.sequences)):
                assert self._under_way, "a token that no step samples"
                outputs += self._collect()
            self._under_way.append(self.runner.sample(scored, self._masks(scored)))
        except torch.AcceleratorError:
            raise
        except _STEP_FAILURES as error:
            if not self._recovers:
                raise
            return error
        return None

    def _masks(self, step: ScoredStep) -> TokenMasks | None:
        """Those of its sequences that follow a grammar and have not ended meanwhile."""
        if step.scores is None:
            return None
        answers = [
            (row, sequence.constraint, sequence.output_token_ids)
            for row, sequence in enumerate(step.sequences)
            if sequence.constraint is not None and not sequence.finished
        ]
        return TokenMasks.of(answers, self.device)

    def _inputs(self, chunks: list[ScheduledChunk]) -> StepInputs:
        inputs = self._lay_out(chunks)
        inputs.upcoming_images = (
            image
            for sequence in islice(self.scheduler.waiting, _UPCOMING)
            for image in sequence.request.images
        )
        return inputs

    def _collect(self) -> Outputs:
        """The tokens of the oldest step under way, once it is done."""
        step = self._under_way.popleft()
        outputs: Outputs = []
        token_ids, logprobs = step.token_ids(), step.logprobs()
        for sequence, place, logprob in step.prompt_logprobs():
            sequence.prompt_logprobs[place] = logprob
        for row, (sequence, token_id) in enumerate(zip(step.sequences, token_ids, strict=True)):
            if token_id < 0 and sequence.num_pending and not sequence.finished:
                self.scheduler.finish(sequence, None)
                error = RowError(ErrorCode.ENGINE_ERROR, NOT_FINITE)
                outputs.append(SequenceFailure(sequence, error))
            elif self.scheduler.update(sequence, token_id):
                reason = sequence.finish_reason
                if (failure := _grammar_failure(sequence)) is not None:
                    outputs.append(failure)
                else:
                    outputs.append(TokenOutput(sequence, token_id, reason, logprobs.get(row)))
        self._failures = 0
        return outputs

    def _drain(self) -> Outputs:
        """The tokens of all steps under way."""
        outputs: Outputs = []
        while self._under_way:
            outputs += self._collect()
        return outputs

    def _recover(self, chunks: list[ScheduledChunk], error: Exception) -> Outputs:
        """Set the failed step's sequences apart, or end the one that makes steps fail."""
        logger.debug("a step of %d sequences failed", len(chunks), exc_info=error)
        outputs = self._drain()
        self._await_device()
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        culprit = self.scheduler.abort_step(chunks)
        if culprit is None:
            return outputs
        self._failures += 1
        if self._failures == _MAX_FAILURES:
            raise error
        self.scheduler.finish(culprit, None)
        message = f"the engine failed on this row: {type(error).__name__}: {error}"
        return [*outputs, SequenceFailure(culprit, RowError(ErrorCode.ENGINE_ERROR, message))]

    def _await_device(self) -> None:
        """Wait for a step whose results are dropped: others may be given its blocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def drop_waiting(self) -> list[Sequence]:
        """Give up the sequences that no step has computed anything of yet."""
        dropped = list(self.scheduler.waiting)
        for sequence in dropped:
            self.scheduler.finish(sequence, None)
        return dropped

    def take_back(self, most: int) -> list[Sequence]:
        """Give up sequences that nothing was ever computed of, the last ``most`` of them."""
        new = [each for each in self.scheduler.waiting if each.num_cached_tokens is None]
        taken = new[max(0, len(new) - most) :]
        for sequence in taken:
            self.scheduler.finish(sequence, None)
        return taken

    def reset(self) -> None:
        """Give up every sequence and cached prefix: an interrupted step leaves them half done."""
        self._under_way.clear()
        self._await_device()
        self.scheduler = self._make_scheduler()

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        """End a sequence early, as on a stop string, or give it up (no reason).

        Its blocks are free for others at once.
        """
        self.scheduler.finish(sequence, reason)


def _awaits_token(sequence: Sequence) -> bool:
    """Whether its mask for a step just begun depends on a token that is not known yet."""
    return sequence.constraint is not None and sequence.num_pending > 1


def _grammar_failure(sequence: Sequence) -> SequenceFailure | None:
    """Of a sequence that its grammar has ended, as on all ranks, with a token and no answer."""
    constraint = sequence.constraint
    if constraint is None or constraint.error is None or not sequence.finished:
        return None
    return SequenceFailure(sequence, constraint.error)
